//! The addresses that a VM's interfaces were given, set in the guest over the link where the guest has none.

use std::net::Ipv4Addr;

use drover_schemas::body::spec::{NicSetup, NicSpec};
use drover_schemas::guest::{GuestKind, NetworkRequest, NetworkResult, verb};
use tokio::time::{Duration, sleep};
use tracing::{debug, info, warn};

use super::guest_calls::{CALL, alike};
use crate::guest::Link;
use crate::network::NicLease;

/// After how long a guest that could not be asked is asked again, and how often.
const AGAIN: Duration = Duration::from_secs(5);
const ATTEMPTS: usize = 12;

/// What the guest is asked for about an interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    /// That it has its address.
    pub address: NetworkRequest,
    /// Whom the guest asks for names from then on, if it knows nobody yet.
    pub names: Option<NetworkRequest>,
}

/// What the guest is asked for: one address for each interface that does not ask by itself, and another one of IPv6, which
/// nobody else gives and which some agents and kernels do not know. `names` is who knows names on the network of the first.
#[must_use]
pub fn wanted(spec: &[NicSpec], leases: &[NicLease], names: Option<Ipv4Addr>) -> Vec<Wanted> {
    let wanted = |(index, lease): (usize, &NicLease)| {
        let setup = spec.get(index).map_or(NicSetup::Kernel, |nic| nic.setup);
        let request = |address: String| NetworkRequest {
            mac: lease.mac.clone(),
            addresses: Some(vec![address]),
            // What the guest has set up itself stays, unless that is said to be the agent's.
            if_unset: setup != NicSetup::Agent,
            ..NetworkRequest::default()
        };
        // A guest has one default, as by the kernel's command line.
        let is_first = index == 0;
        let four = (setup != NicSetup::Dhcp).then(|| Wanted {
            address: NetworkRequest {
                gateway: is_first.then(|| lease.gateway.to_string()),
                ..request(format!("{}/{}", lease.ipv4, lease.prefix_len))
            },
            names: names.filter(|_| is_first).map(|server| NetworkRequest {
                mac: lease.mac.clone(),
                dns: Some(vec![server.to_string()]),
                ..NetworkRequest::default()
            }),
        });
        let six = lease.ipv6.map(|ipv6| Wanted {
            address: NetworkRequest {
                gateway6: is_first.then(|| ipv6.gateway.to_string()),
                ..request(format!("{}/{}", ipv6.address, ipv6.prefix_len))
            },
            names: None,
        });
        [four, six].into_iter().flatten()
    };
    leases.iter().enumerate().flat_map(wanted).collect()
}

/// Sets up what is not set up; the same again changes nothing. Says for whom it was done, and why it was not.
pub(super) async fn set_up(link: &Link, vm_id: drover_schemas::VmId, wanted: &[Wanted], allowed: bool) {
    // Processes have the network that they were started in.
    if wanted.is_empty() || link.hello().guest != GuestKind::Vm {
        return;
    }
    let is_needed = wanted.iter().any(|one| !one.address.if_unset);
    if !allowed || link.offers(verb::NETWORK).is_err() {
        let why = if allowed { "its agent cannot" } else { "the spec does not allow \"network\"" };
        if is_needed {
            warn!(%vm_id, "the guest's network is not set over the link: {why}");
        }
        return;
    }
    for Wanted { address, names } in wanted {
        for attempt in 1..=ATTEMPTS {
            match alike::<_, NetworkResult>(link, verb::NETWORK, None, CALL, address).await {
                Ok(done) => {
                    if done.changed {
                        info!(%vm_id, interface = %done.interface, address = ?address.addresses, "the guest's interface was set up");
                    }
                    // Whom it asks already stays.
                    if let Some(names) = names.as_ref().filter(|_| done.after.dns.is_empty()) {
                        tell_names(link, vm_id, names).await;
                    }
                }
                // It may be busy with its boot, or the VM is paused.
                Err(error) if error.retryable && link.is_open() && attempt < ATTEMPTS => {
                    debug!(%error, "the guest's network is set later");
                    sleep(AGAIN).await;
                    continue;
                }
                Err(error) => {
                    warn!(%error, %vm_id, mac = %address.mac, "the guest's network is not set over the link")
                }
            }
            break;
        }
    }
}

async fn tell_names(link: &Link, vm_id: drover_schemas::VmId, names: &NetworkRequest) {
    match alike::<_, NetworkResult>(link, verb::NETWORK, None, CALL, names).await {
        Ok(_) => info!(%vm_id, servers = ?names.dns, "the guest was told whom to ask for names"),
        // Another program of the guest may have the list; that one knows better.
        Err(error) => debug!(%error, %vm_id, "the guest is not told whom to ask for names"),
    }
}

#[cfg(test)]
mod tests {
    use drover_schemas::Token;

    use super::*;

    #[test]
    fn each_interface_gets_its_own_address_and_the_first_the_default() {
        let lease = |n: u8| NicLease {
            network: Token::new("default").unwrap(),
            tap: format!("tap{n}"),
            mac: format!("52:54:00:00:00:0{n}"),
            ipv4: [10, 77, n, 2].into(),
            prefix_len: 24,
            gateway: [10, 77, n, 1].into(),
            ipv6: None,
        };
        let nic = |setup| NicSpec {
            network: Token::new("default").unwrap(),
            forwards: Vec::new(),
            egress: None,
            limits: None,
            setup,
            ipv4: None,
            queues: 1,
        };
        let leases = [lease(0), lease(1), lease(2)];
        let specs = [nic(NicSetup::Agent), nic(NicSetup::Kernel), nic(NicSetup::Dhcp)];
        let both = wanted(&specs, &leases, Some(Ipv4Addr::new(10, 77, 0, 1)));
        let asked: Vec<&NetworkRequest> = both.iter().map(|one| &one.address).collect();
        assert_eq!(asked.len(), 2, "one asks by itself");
        assert_eq!(asked[0].addresses.as_deref(), Some(&["10.77.0.2/24".to_owned()][..]));
        assert_eq!((asked[0].gateway.as_deref(), asked[0].if_unset), (Some("10.77.0.1"), false));
        assert_eq!((asked[1].gateway.as_deref(), asked[1].if_unset), (None, true));
        assert_eq!(asked[1].mac, "52:54:00:00:00:01");
        assert!(asked.iter().all(|request| request.dns.is_none() && request.routes.is_empty()));
        let names = both[0].names.as_ref().unwrap();
        assert_eq!((names.mac.as_str(), names.addresses.as_ref()), ("52:54:00:00:00:00", None));
        assert_eq!(names.dns.as_deref(), Some(&["10.77.0.1".to_owned()][..]));
        assert_eq!(both[1].names, None);
        assert!(wanted(&specs, &leases, None).iter().all(|one| one.names.is_none()));
        // Apart, so that a guest without IPv6 has all else; who asks by itself is told nothing of it.
        let six = |n: u8| lease(n).with_ipv6(Some("fd00:77::/64".parse().unwrap()));
        let all = wanted(&specs, &[six(0), six(1), six(2)], None);
        let all: Vec<&NetworkRequest> = all.iter().map(|one| &one.address).collect();
        assert_eq!((all[0], all[2], all.len()), (asked[0], asked[1], 5));
        assert_eq!(all[1].addresses.as_deref(), Some(&["fd00:77::2/64".to_owned()][..]));
        assert_eq!((all[1].gateway6.as_deref(), all[1].if_unset), (Some("fd00:77::1"), false));
        assert!(all[3..].iter().all(|request| request.gateway6.is_none() && request.if_unset));
        assert!([1, 3, 4].iter().all(|&n| all[n].gateway.is_none()));
    }
}
