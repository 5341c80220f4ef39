use super::*;
use proptest::prelude::*;

fn policy(hosts: &[&str]) -> UrlPolicy {
    UrlPolicy { hosts: hosts.iter().map(|&host| host.to_owned()).collect(), ..UrlPolicy::default() }
}

#[test]
fn only_https_of_the_hosts_that_are_named_is_taken() {
    let policy = policy(&[
        "images.example.org",
        "*.mirror.example",
        "files.example.org:8443",
        "192.0.9.1",
        "[2600::1]",
    ]);
    for taken in [
        "https://images.example.org/a",
        "https://IMAGES.example.org:443/a?x=1",
        "https://a.mirror.example/",
        "https://a.b.mirror.example/",
        "https://files.example.org:8443/a",
        "https://192.0.9.1/a",
        "https://[2600::1]/a",
    ] {
        policy.url(taken).unwrap_or_else(|error| panic!("{taken}: {error}"));
    }
    for refused in [
        "http://images.example.org/a",
        "file:///etc/passwd",
        "ftp://images.example.org/a",
        "https://images.example.org:8443/a",
        "https://files.example.org/a",
        "https://images.example.org.evil.example/a",
        "https://evil.example/images.example.org",
        "https://mirror.example/",
        "https://evilmirror.example/",
        "https://user@images.example.org/a",
        "https://:secret@images.example.org/a",
        "https://images.example.org@evil.example/a",
        "https://[2600::2]/a",
        "https:///a",
        "/etc/passwd",
        "",
    ] {
        assert!(policy.url(refused).is_err(), "{refused}");
    }
    assert_eq!(UrlPolicy::default().url("https://images.example.org/a"), Err(UrlRefused::NoHosts));
}

#[test]
fn an_address_that_is_written_in_the_url_is_looked_at_however_it_is_written() {
    let policy = policy(&["127.0.0.1", "[::1]", "[::ffff:7f00:1]", "10.0.0.1"]);
    for refused in [
        "https://127.0.0.1/",
        "https://2130706433/",
        "https://0x7f.1/",
        "https://0177.0.0.1/",
        "https://[::1]/",
        "https://[::ffff:127.0.0.1]/",
        "https://10.0.0.1/",
    ] {
        assert!(matches!(policy.url(refused), Err(UrlRefused::Address { .. })), "{refused}");
    }
    let inside = UrlPolicy { private: vec!["10.0.0.0/24".parse().unwrap()], ..policy };
    inside.url("https://10.0.0.1/").unwrap();
    assert!(inside.url("https://127.0.0.1/").is_err());
}

#[test]
fn ranges_that_are_not_the_public_internet() {
    for special in [
        "0.0.0.0",
        "10.1.2.3",
        "100.64.0.1",
        "100.127.255.255",
        "127.8.8.8",
        "169.254.169.254",
        "172.31.0.1",
        "192.168.1.1",
        "198.19.0.1",
        "224.0.0.1",
        "240.0.0.1",
        "255.255.255.255",
        "::",
        "::1",
        "fe80::1",
        "fc00::1",
        "fd12::1",
        "ff02::1",
        "::ffff:10.0.0.1",
        "64:ff9b::a00:1",
        "64:ff9b:1::1",
        "2001:db8::1",
        "2001::1",
        "2002:0a00:0001::1",
        "100::1",
        "3fff::1",
        "5f00::1",
    ] {
        let error = policy(&["a"]).address("a", special.parse().unwrap());
        assert!(matches!(error, Err(UrlRefused::Address { .. })), "{special}");
    }
    for public in
        ["1.1.1.1", "100.63.255.255", "100.128.0.1", "172.32.0.1", "223.255.255.255", "2600::1", "2a00::1"]
    {
        policy(&["a"]).address("a", public.parse().unwrap()).unwrap();
    }
}

proptest! {
    #[test]
    fn no_text_is_taken_for_a_host_that_is_not_named(text in "\\PC{0,60}") {
        for text in [text.clone(), format!("https://{text}"), format!("https://{text}/a")] {
            if let Ok(url) = policy(&["images.example.org"]).url(&text) {
                prop_assert_eq!(url.host_str(), Some("images.example.org"));
                prop_assert_eq!(url.scheme(), "https");
            }
        }
    }
}
