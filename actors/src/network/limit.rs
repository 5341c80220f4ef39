//! How fast a guest may send and receive: what a spec asks for, checked, and its elements in the firewall. Pure.
//!
//! What comes faster is dropped at the bridge, by the host, whatever VMM there is. The firewall counts in bytes a second,
//! and lets through what a second of silence left over: connections settle at the limit within the first seconds.

use drover_schemas::ErrorBody;
use drover_schemas::body::spec::{NicLimits, NicSpec};
use drover_schemas::body::vm::LimitRequest;

use super::forward::of_index;
use super::nft::{LIMIT_RECEIVE, LIMIT_SEND, Member, OVER_RECEIVE, OVER_SEND};
use crate::spec::invalid;

/// The least, in bits a second: below it one frame of a guest would take more than a second.
pub const MIN: u64 = 100_000;
/// The most.
pub const MAX: u64 = 100_000_000_000;

/// How fast an interface may be, in bytes a second.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Limits {
    /// From the guest.
    send: Option<u64>,
    /// To the guest.
    receive: Option<u64>,
}

impl Limits {
    /// Reads what a spec says; `field` is where it stands.
    ///
    /// # Errors
    /// `invalid_argument` with the field.
    pub fn read(field: &str, limits: &NicLimits) -> Result<Self, ErrorBody> {
        let rate = |name: &str, bits: Option<u64>| match bits {
            Some(bits) if !(MIN..=MAX).contains(&bits) => {
                let text = format!("{bits} bits a second; from {MIN} to {MAX}, or left out for no limit");
                Err(invalid(&format!("{field}.{name}"), text))
            }
            bits => Ok(bits.map(|bits| bits / 8)),
        };
        let send = rate("send_bits_per_second", limits.send_bits_per_second)?;
        Ok(Self { send, receive: rate("receive_bits_per_second", limits.receive_bits_per_second)? })
    }

    /// Their elements, of a TAP: the limits, and what counts the frames that are beyond.
    #[must_use]
    pub fn elements(&self, tap: &str) -> Vec<Member> {
        let of = |set: &str, value| Member { set: set.to_owned(), parts: vec![tap.to_owned()], value };
        let both = [(self.send, LIMIT_SEND, OVER_SEND), (self.receive, LIMIT_RECEIVE, OVER_RECEIVE)];
        let limited = both.into_iter().filter_map(|(rate, limit, over)| Some((rate?, limit, over)));
        limited.flat_map(|(rate, limit, over)| [of(limit, Some(rate.to_string())), of(over, None)]).collect()
    }
}

/// Reads how fast the interfaces of a VM may be.
///
/// # Errors
/// `invalid_argument` with the field.
pub fn read_all(nics: &[NicSpec]) -> Result<Vec<Limits>, ErrorBody> {
    let read = |(i, nic): (usize, &NicSpec)| match &nic.limits {
        Some(limits) => Limits::read(&format!("spec.nics[{i}].limits"), limits),
        None => Ok(Limits::default()),
    };
    nics.iter().enumerate().map(read).collect()
}

/// The interfaces of a VM with other limits of one of them.
///
/// # Errors
/// `invalid_argument` for an interface that is not there or a limit that is none.
pub fn changed(nics: &[NicSpec], request: &LimitRequest) -> Result<Vec<NicSpec>, ErrorBody> {
    let mut nics = nics.to_vec();
    let nic = of_index(&mut nics, request.nic)?;
    Limits::read("limits", &request.limits)?;
    nic.limits = Some(request.limits).filter(|limits| *limits != NicLimits::default());
    Ok(nics)
}

#[cfg(test)]
mod tests {
    use drover_schemas::ErrorCode;

    use super::*;

    fn limits(send: Option<u64>, receive: Option<u64>) -> NicLimits {
        NicLimits { send_bits_per_second: send, receive_bits_per_second: receive }
    }

    #[test]
    fn each_direction_has_its_own_limit_or_none() {
        let shown = |limits: NicLimits| -> Vec<String> {
            let elements = Limits::read("l", &limits).unwrap().elements("dr0");
            let text = |m: Member| format!("{} {}", m.set, m.value.unwrap_or_default());
            elements.into_iter().map(text).collect()
        };
        assert_eq!(shown(limits(None, None)), [""; 0]);
        assert_eq!(shown(limits(Some(8_000_000), None)), ["limit_send 1000000", "over_send "]);
        let both = shown(limits(Some(MIN), Some(MAX)));
        assert_eq!(both, ["limit_send 12500", "over_send ", "limit_receive 12500000000", "over_receive "]);
    }

    #[test]
    fn what_cannot_be_meant_is_refused_with_its_field() {
        for (limits, field) in [
            (limits(Some(0), None), "l.send_bits_per_second"),
            (limits(Some(MIN - 1), None), "l.send_bits_per_second"),
            (limits(None, Some(MAX + 1)), "l.receive_bits_per_second"),
        ] {
            assert_eq!(Limits::read("l", &limits).unwrap_err().details["field"], field);
        }
    }

    #[test]
    fn limits_are_changed_in_the_place_of_those_before() {
        let nic =
            |limits| -> NicSpec { NicSpec { limits, ..serde_json::from_str::<NicSpec>("{}").unwrap() } };
        let has = [nic(Some(limits(Some(MIN), Some(MIN)))), nic(None)];
        let ask = |nic, limits| changed(&has, &LimitRequest { nic, limits, ..LimitRequest::default() });
        assert_eq!(ask(0, limits(None, None)).unwrap(), [nic(None), nic(None)]);
        let one = limits(None, Some(MAX));
        assert_eq!(ask(1, one).unwrap(), [has[0].clone(), nic(Some(one))]);
        for (refused, field) in
            [(ask(2, one), "nic"), (ask(0, limits(Some(1), None)), "limits.send_bits_per_second")]
        {
            let error = refused.unwrap_err();
            assert_eq!((error.code, error.details["field"].as_str()), (ErrorCode::InvalidArgument, field));
        }
    }
}
