use minisign::KeyPair;
use proptest::prelude::*;

use super::*;

fn signer(pair: &KeyPair) -> Signer {
    Signer::try_from(pair.pk.to_base64()).unwrap()
}

fn sign(pair: &KeyPair, content: &[u8]) -> String {
    minisign::sign(Some(&pair.pk), &pair.sk, content, Some("of the test"), None).unwrap().into_string()
}

fn read(proof: &Proof, content: &[u8]) -> Result<Vec<u8>, ImportError> {
    proof.check(content, |source| {
        let mut all = Vec::new();
        source.read_to_end(&mut all).map_err(ImportError::Read)?;
        Ok(all)
    })
}

#[test]
fn a_content_is_taken_if_one_of_the_keys_has_signed_it() {
    let [one, two, stranger] = [0; 3].map(|_| KeyPair::generate_unencrypted_keypair().unwrap());
    let signers = [signer(&one), signer(&two)];
    let content = b"what is signed".repeat(1000);
    for pair in [&one, &two] {
        let text = sign(pair, &content);
        let proof = Proof::wanted(&signers, Some(&text)).unwrap();
        assert_eq!((proof.signer(), proof.text.as_deref()), (Some(signer(pair).id), Some(text.as_str())));
        assert_eq!(read(&proof, &content).unwrap(), content);
        for other in [&content[1..], b"", &[&content[..], b"!"].concat()] {
            assert!(matches!(read(&proof, other), Err(ImportError::Forged { .. })));
        }
        // What it says of itself is signed too.
        let changed = text.replace("of the test", "of another!");
        let proof = Proof::wanted(&signers, Some(&changed)).unwrap();
        assert!(matches!(read(&proof, &content), Err(ImportError::Forged { .. })));
    }
    let by_stranger = Proof::wanted(&signers, Some(&sign(&stranger, &content))).unwrap_err();
    assert!(matches!(&by_stranger, Unsigned::Stranger { key, .. } if *key == signer(&stranger).id));
    let missing = Proof::wanted(&signers, None).unwrap_err();
    assert!(matches!(&missing, Unsigned::Missing { keys } if keys.contains(&signers[1].id)), "{missing}");
    // Where nobody's is wanted, one is kept for those who want it.
    let text = sign(&stranger, &content);
    let kept = Proof::wanted(&[], Some(&text)).unwrap();
    assert_eq!((kept.signer(), kept.text.as_ref()), (None, Some(&text)));
    assert_eq!(read(&kept, b"another").unwrap(), b"another");
    assert!(Proof::wanted(&[], None).unwrap().text.is_none());
}

#[test]
fn what_the_program_itself_writes_is_taken() {
    // By minisign 0.11, of a file with `hello` and a new line.
    let key = "RWRzVsK649O5mJayH4KsqgLXHJPpDl8LPnC+7BZ9vERv5Jjdg0LsGKv5";
    let text = "untrusted comment: signature from minisign secret key\n\
                RURzVsK649O5mHbtVW4VE+Gvm02efivKk/GHKlQGiiluKhXfKn0V6tBRQXp2WMfX91GzwQkzJCZrRsXU388RqfvZjzVo9JsxRQA=\n\
                trusted comment: timestamp:1795808840\tfile:f\thashed\n\
                nY69zR/AUmtPA4Lfqm0OiL0metKqlzHx97IPnG2tBjiS5ii0y5KIkcU3KvhRBIP4/g5UMvYHqiPGZgVFRvrEAg==\n";
    let signers = [Signer::try_from(key.to_owned()).unwrap()];
    let proof = Proof::wanted(&signers, Some(text)).unwrap();
    assert_eq!(proof.signer().as_deref(), Some("98B9D3E3BAC25673"));
    assert!(read(&proof, b"hello\n").is_ok() && read(&proof, b"hello").is_err());
}

#[test]
fn a_signature_of_the_old_kind_and_what_is_none_are_refused() {
    // Key and signature of minisign's own documentation: the first bytes of the signature tell that it is old.
    let key = "RWQf6LRCGA9i53mlYecO4IzT51TGPpvWucNSCh1CBM0QTaLn73Y7GFO3";
    let old = "untrusted comment: signature from minisign secret key\n\
               RWQf6LRCGA9i59SLOFxz6NxvASXDJeRtuZykwQepbDEGt87ig1BNpWaVWuNrm73YiIiJbq71Wi+dP9eKL8OC351vwIasSSbXxwA=\n\
               trusted comment: timestamp:1555779966\tfile:test\n\
               QtKMXWyYcwdpZAlPF7tE2ENJkRd1ujvKjlj1m9RtHTBnZPa5WKU5uWRs5GoP5M/VqE81QFuMKI5k/SfNQUaOAA==";
    let signers = [Signer::try_from(key.to_owned()).unwrap()];
    assert_eq!(signers[0].id, "E7620F1842B4E81F");
    assert_eq!(Proof::wanted(&signers, Some(old)).unwrap_err(), Unsigned::Legacy);
    let long = format!("{old}\n{}", "x".repeat(LONGEST));
    for none in ["", "RWQ", "a\nb\nc\nd", long.as_str()] {
        assert_eq!(Proof::wanted(&signers, Some(none)).unwrap_err(), Unsigned::Unreadable);
        assert!(Proof::wanted(&[], Some(none)).is_err());
    }
    for none in ["", "RW", &key[1..], old] {
        assert!(Signer::try_from(none.to_owned()).is_err(), "{none}");
    }
}

proptest! {
    #[test]
    fn whatever_comes_as_a_signature_is_read_or_refused(text in "(.{0,20}\n)?[A-Za-z0-9+/=]{0,100}(\n.{0,30}){0,3}") {
        let key = "RWQf6LRCGA9i53mlYecO4IzT51TGPpvWucNSCh1CBM0QTaLn73Y7GFO3";
        let signers = [Signer::try_from(key.to_owned()).unwrap()];
        prop_assert!(Proof::wanted(&signers, Some(&text)).is_err());
    }
}
