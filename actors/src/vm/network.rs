//! The addresses that a VM's interfaces were given, set in the guest over the link where the guest has none.

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

/// What the guest is asked for: one request for each interface, and another for its address of IPv6, which some agents and
/// kernels do not know.
#[must_use]
pub fn wanted(spec: &[NicSpec], leases: &[NicLease]) -> Vec<NetworkRequest> {
    let requests = |(index, lease): (usize, &NicLease)| {
        // What the guest has set up itself stays, unless that is said to be the agent's.
        let if_unset = spec.get(index).is_none_or(|nic| nic.setup == NicSetup::Kernel);
        let request = |address: String| NetworkRequest {
            mac: lease.mac.clone(),
            addresses: Some(vec![address]),
            if_unset,
            ..NetworkRequest::default()
        };
        // A guest has one default, as by the kernel's command line.
        let is_first = index == 0;
        let four = NetworkRequest {
            gateway: is_first.then(|| lease.gateway.to_string()),
            ..request(format!("{}/{}", lease.ipv4, lease.prefix_len))
        };
        let six = lease.ipv6.map(|ipv6| NetworkRequest {
            gateway6: is_first.then(|| ipv6.gateway.to_string()),
            ..request(format!("{}/{}", ipv6.address, ipv6.prefix_len))
        });
        [Some(four), six].into_iter().flatten()
    };
    leases.iter().enumerate().flat_map(requests).collect()
}

/// Sets up what is not set up; the same again changes nothing. Says for whom it was done, and why it was not.
pub(super) async fn set_up(
    link: &Link,
    vm_id: drover_schemas::VmId,
    requests: &[NetworkRequest],
    allowed: bool,
) {
    // Processes have the network that they were started in.
    if requests.is_empty() || link.hello().guest != GuestKind::Vm {
        return;
    }
    let is_needed = requests.iter().any(|request| !request.if_unset);
    if !allowed || link.offers(verb::NETWORK).is_err() {
        let why = if allowed { "its agent cannot" } else { "the spec does not allow \"network\"" };
        if is_needed {
            warn!(%vm_id, "the guest's network is not set over the link: {why}");
        }
        return;
    }
    for request in requests {
        for attempt in 1..=ATTEMPTS {
            match alike::<_, NetworkResult>(link, verb::NETWORK, None, CALL, request).await {
                Ok(done) if done.changed => {
                    info!(%vm_id, interface = %done.interface, address = ?request.addresses, "the guest's interface was set up");
                }
                Ok(_) => {}
                // It may be busy with its boot, or the VM is paused.
                Err(error) if error.retryable && link.is_open() && attempt < ATTEMPTS => {
                    debug!(%error, "the guest's network is set later");
                    sleep(AGAIN).await;
                    continue;
                }
                Err(error) => {
                    warn!(%error, %vm_id, mac = %request.mac, "the guest's network is not set over the link")
                }
            }
            break;
        }
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
        };
        let asked = wanted(&[nic(NicSetup::Agent), nic(NicSetup::Kernel)], &[lease(0), lease(1)]);
        assert_eq!(asked[0].addresses.as_deref(), Some(&["10.77.0.2/24".to_owned()][..]));
        assert_eq!((asked[0].gateway.as_deref(), asked[0].if_unset), (Some("10.77.0.1"), false));
        assert_eq!((asked[1].gateway.as_deref(), asked[1].if_unset), (None, true));
        assert_eq!(asked[1].mac, "52:54:00:00:00:01");
        assert!(asked.iter().all(|request| request.dns.is_none() && request.routes.is_empty()));
        // Apart, so that a guest without IPv6 has all else.
        let six = |n: u8| lease(n).with_ipv6(Some("fd00:77::/64".parse().unwrap()));
        let both = wanted(&[nic(NicSetup::Agent), nic(NicSetup::Kernel)], &[six(0), six(1)]);
        assert_eq!((&both[0], &both[2], both.len()), (&asked[0], &asked[1], 4));
        assert_eq!(both[1].addresses.as_deref(), Some(&["fd00:77::2/64".to_owned()][..]));
        assert_eq!((both[1].gateway6.as_deref(), both[1].if_unset), (Some("fd00:77::1"), false));
        assert_eq!((both[3].gateway6.as_deref(), both[3].if_unset), (None, true));
        assert!(both[1].gateway.is_none() && both[3].gateway.is_none());
    }
}
