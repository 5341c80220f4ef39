use super::*;

fn caller(user: &str, verified: bool) -> Caller {
    Caller { verified, user: Some(user.to_owned()), account: Some("acme".into()), ..Caller::default() }
}

#[test]
fn a_flood_of_denials_is_counted_and_hides_nobody_else() {
    let mut rates = Rates::new(0, Instant::now());
    let admitted = (0..5_000_u64).filter(|_| rates.admit(&caller("eve", true))).count() as u64;
    assert!((200..300).contains(&admitted), "{admitted}");
    assert!(rates.admit(&caller("bob", true)));
    let sums = rates.suppressed(true);
    let [(of, count)] = &sums[..] else { panic!("{sums:?}") };
    assert_eq!((of.user.as_deref(), *count), (Some("eve"), 5_000 - admitted));
    assert_eq!(rates.untold, *count);
    assert!(rates.suppressed(true).is_empty());
}

#[test]
fn names_that_nobody_has_proved_share_one_rate() {
    let mut rates = Rates::new(7, Instant::now());
    assert_eq!(rates.suppressed(true).iter().map(|(_, count)| count).sum::<u64>(), 7, "of the one before");
    let admitted = (0..5_000).filter(|n| rates.admit(&caller(&format!("x{n}"), false))).count();
    assert!((200..300).contains(&admitted), "{admitted}");
}
