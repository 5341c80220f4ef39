//! The published contract, as this host answers it.

use std::sync::LazyLock;

use drover_schemas::contract::{ASYNCAPI, ContractReply};

/// Without the indentation, which would make half of it.
pub static CONTRACT: LazyLock<ContractReply> = LazyLock::new(|| {
    let value = serde_json::from_str::<serde_json::Value>(ASYNCAPI);
    ContractReply {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        asyncapi: value.map_or_else(|_| ASYNCAPI.to_owned(), |value| value.to_string()),
    }
});

#[cfg(test)]
mod tests {
    use drover_schemas::codec::{self, Format};

    use super::*;

    /// Replies stay below half of the smallest usual `max_payload`, also where quotes are escaped.
    #[test]
    fn the_contract_fits_into_a_reply() {
        for format in [Format::MsgPack, Format::Json] {
            assert!(codec::encode_as(format, &*CONTRACT).unwrap().len() < 400 * 1024);
        }
        assert!(CONTRACT.asyncapi.len() < ASYNCAPI.len());
    }
}
