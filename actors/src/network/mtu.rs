//! The longest packet of a network. Pure.

use serde::{Deserialize, Serialize};

/// In bytes, without the header of its frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "u32", into = "u32")]
pub struct Mtu(u16);

impl Mtu {
    /// The least that a virtio interface has.
    pub const MIN: u16 = 1280;
    /// The most: jumbo frames.
    pub const MAX: u16 = 9216;

    /// The number.
    #[must_use]
    pub fn get(self) -> u32 {
        self.0.into()
    }
}

impl Default for Mtu {
    fn default() -> Self {
        Self(1500)
    }
}

impl TryFrom<u32> for Mtu {
    type Error = String;

    fn try_from(bytes: u32) -> Result<Self, Self::Error> {
        let fits = |bytes: &u16| (Self::MIN..=Self::MAX).contains(bytes);
        let found = u16::try_from(bytes).ok().filter(fits);
        found.map(Self).ok_or_else(|| format!("an MTU is {} to {} bytes, not {bytes}", Self::MIN, Self::MAX))
    }
}

impl From<Mtu> for u32 {
    fn from(mtu: Mtu) -> Self {
        mtu.get()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_no_network_has_is_refused_in_words() {
        for bytes in [0, 1279, 9217, 70_000] {
            let said = serde_json::from_value::<Mtu>(bytes.into()).unwrap_err().to_string();
            assert!(said.contains("1280 to 9216"), "{said}");
        }
        assert_eq!(serde_json::from_value::<Mtu>(9000.into()).unwrap().get(), 9000);
        assert_eq!(serde_json::to_value(Mtu::default()).unwrap(), 1500);
    }
}
