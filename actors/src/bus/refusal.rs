//! Why a server and its client do not come together, where it is a matter of their settings.
//!
//! The library that connects tells it in words only, which differ between what this end found and what the server
//! said before it hung up.

/// Who refuses whom, and why.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// The server knows no such user, or another secret of it.
    Login,
    /// The server wants a certificate, and there was none.
    NoCertificate,
    /// The server says that the certificate of this end has expired.
    OwnExpired,
    /// The server says that the certificate of this end is not signed by an authority of its own, or is none.
    OwnUnknown,
    /// The certificate of the server has expired, or is not valid yet.
    Expired,
    /// The certificate of the server is not signed by an authority that this end trusts.
    Unknown,
    /// The certificate of the server is for another name.
    Name,
    /// A certificate or key of this end cannot be read, or one is not the other's.
    Files,
}

impl Refusal {
    /// All there are.
    pub const ALL: [Self; 8] = [
        Self::Login,
        Self::NoCertificate,
        Self::OwnExpired,
        Self::OwnUnknown,
        Self::Expired,
        Self::Unknown,
        Self::Name,
        Self::Files,
    ];

    /// What a failed attempt says, if it says one of these.
    #[must_use]
    pub fn of(text: &str) -> Option<Self> {
        let text = text.to_ascii_lowercase().replace(' ', "");
        let says = |parts: &[&str]| parts.iter().any(|part| text.contains(part));
        // An alert is what the other end says of this one.
        let alert = text.contains("receivedfatalalert");
        Some(match () {
            () if says(&["authorization", "authentication"]) => Self::Login,
            () if says(&["certificaterequired"]) => Self::NoCertificate,
            () if alert && says(&["certificateexpired"]) => Self::OwnExpired,
            () if alert
                && says(&["unknownca", "badcertificate", "certificateunknown", "unsupportedcertificate"]) =>
            {
                Self::OwnUnknown
            }
            () if says(&["notvalidforname"]) => Self::Name,
            () if says(&["invalidpeercertificate:expired", "certificateexpired", "notvalidyet"]) => {
                Self::Expired
            }
            () if says(&["unknownissuer", "invalidpeercertificate"]) => Self::Unknown,
            () if says(&["certificateorkey", "couldnotloadcertificates", "couldnotloadprivatekey"]) => {
                Self::Files
            }
            () => return None,
        })
    }

    /// A word for programs.
    #[must_use]
    pub const fn cause(self) -> &'static str {
        match self {
            Self::Login => "login",
            Self::NoCertificate => "certificate_required",
            Self::OwnExpired => "certificate_expired",
            Self::OwnUnknown => "certificate_unknown",
            Self::Expired => "server_certificate_expired",
            Self::Unknown => "server_certificate_unknown",
            Self::Name => "server_certificate_name",
            Self::Files => "tls_files",
        }
    }

    /// What it means.
    #[must_use]
    pub const fn meaning(self) -> &'static str {
        match self {
            Self::Login => "the server refused us",
            Self::NoCertificate => "the server wants a certificate",
            Self::OwnExpired => "the server refused our certificate, which has expired",
            Self::OwnUnknown => {
                "the server refused our certificate, which is not signed by an authority of its own"
            }
            Self::Expired => "the server's certificate has expired",
            Self::Unknown => "the server's certificate is not signed by an authority that we trust",
            Self::Name => "the server's certificate is not for the name or address at which we look for it",
            Self::Files => "the certificate and its key cannot be used",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_side_of_a_broken_handshake_is_told_from_the_other() {
        for (text, expected) in [
            ("authorization violation: nats: Authorization Violation", Some(Refusal::Login)),
            ("IO error: received fatal alert: CertificateRequired", Some(Refusal::NoCertificate)),
            ("IO error: received fatal alert: CertificateExpired", Some(Refusal::OwnExpired)),
            ("IO error: received fatal alert: UnknownCA", Some(Refusal::OwnUnknown)),
            ("IO error: received fatal alert: BadCertificate", Some(Refusal::OwnUnknown)),
            ("IO error: invalid peer certificate: Expired", Some(Refusal::Expired)),
            (
                "invalid peer certificate: certificate expired: verification time 5 (UNIX), but certificate is not \
                 valid after 4 (1 seconds ago)",
                Some(Refusal::Expired),
            ),
            ("IO error: invalid peer certificate: UnknownIssuer", Some(Refusal::Unknown)),
            (
                "invalid peer certificate: certificate not valid for name \"127.0.0.1\"; certificate is only valid \
                 for DnsName(\"bus.example\")",
                Some(Refusal::Name),
            ),
            ("IO error: invalid peer certificate: NotValidForName", Some(Refusal::Name)),
            ("TLS error: could not add certificate or key", Some(Refusal::Files)),
            ("IO error: Connection refused (os error 111)", None),
            ("timed out", None),
        ] {
            assert_eq!(Refusal::of(text), expected, "{text}");
        }
    }
}
