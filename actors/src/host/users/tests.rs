use proptest::prelude::*;

use super::*;

const COUNT: u32 = 10_000;

fn at(first: u32) -> UserRange {
    UserRange { first, count: COUNT }
}

fn wanted(first: Option<u32>) -> WantedUsers {
    WantedUsers { folder: "/nonexistent".into(), first, count: COUNT }
}

fn of(name: &str, ranges: &[UserRange]) -> Claim {
    Claim { state: name.into(), ranges: ranges.to_vec() }
}

#[test]
fn the_first_that_nobody_has_is_chosen_and_kept() {
    let first = |own: &[UserRange], in_use: &[u32], others: &[Claim], reserved: &[UserRange]| {
        choose(&wanted(None), own, in_use, others, reserved).unwrap().first
    };
    assert_eq!(first(&[], &[], &[], &[]), 200_000);
    let others = [of("/a", &[at(200_000)]), of("/b", &[at(215_000), at(230_000)])];
    assert_eq!(first(&[], &[], &others, &[]), 240_000);
    assert_eq!(first(&[], &[], &others[..1], &[at(205_000)]), 215_000);
    // What it has it keeps, whatever the system has set aside since.
    assert_eq!(first(&[at(210_000)], &[], &others[..1], &[at(210_000)]), 210_000);
    assert_eq!(first(&[at(210_000)], &[], &others, &[]), 240_000);
    // Its VMs have users of an earlier version.
    assert_eq!(first(&[], &[200_007], &[], &[at(200_000)]), 200_000);
    assert_eq!(first(&[], &[200_007], &others, &[]), 240_000);
}

#[test]
fn a_range_that_somebody_chose_is_that_one_or_an_error() {
    let others = [of("/a", &[at(200_000)])];
    assert_eq!(choose(&wanted(Some(210_000)), &[], &[], &others, &[at(210_000)]).unwrap(), at(210_000));
    for first in [190_001, 200_000, 209_999] {
        let error = choose(&wanted(Some(first)), &[], &[], &others, &[]).unwrap_err().to_string();
        assert!(error.contains("in /a begin at 200000") && error.contains("use 210000"), "{error}");
    }
    let none = [of("/a", &[UserRange { first: 200_000, count: LAST }])];
    assert!(matches!(choose(&wanted(None), &[], &[], &none, &[]), Err(UsersError::None { .. })));
}

#[test]
fn an_earlier_range_is_kept_while_a_vm_has_a_user_of_it() {
    let own = [at(200_000), at(300_000)];
    assert_eq!(claimed(at(400_000), &own, &[300_001]), [at(400_000), at(300_000)]);
    assert_eq!(claimed(at(200_000), &own, &[200_001]), [at(200_000)]);
}

#[test]
fn what_the_system_has_set_aside_is_read() {
    let text = "a:100000:65536\nno line\nb:165536:x\nc:231072:65536\n";
    let ranges = [(100_000, 65_536), (231_072, 65_536)].map(|(first, count)| UserRange { first, count });
    assert_eq!(reserved(text), ranges);
}

proptest! {
    #[test]
    fn nobody_gets_what_another_has(
        installations in prop::collection::vec((1_u32..30_000, prop::option::of(1_000_u32..400_000)), 1..12),
    ) {
        let mut claims: Vec<Claim> = Vec::new();
        for (count, first) in installations {
            let wanted = WantedUsers { folder: PathBuf::new(), first, count };
            let Ok(range) = choose(&wanted, &[], &[], &claims, &[]) else { continue };
            prop_assert_eq!((range.count, first.is_none_or(|first| first == range.first)), (count, true));
            prop_assert!(claims.iter().all(|claim| claim.ranges.iter().all(|theirs| !theirs.meets(range))));
            claims.push(of("/x", &claimed(range, &[], &[])));
        }
    }
}

#[test]
fn claims_outlive_their_daemon_and_end_with_their_journal() {
    if !nix::unistd::geteuid().is_root() {
        return println!("SKIP claims_outlive_their_daemon_and_end_with_their_journal: needs root");
    }
    let dir = tempfile::tempdir().unwrap();
    let wanted = WantedUsers { folder: dir.path().join("users"), ..wanted(None) };
    let state = |name: &str| {
        let state = dir.path().join(name);
        fs::create_dir_all(&state).unwrap();
        fs::write(state.join(JOURNAL_FILE), "").unwrap();
        state
    };
    let id = InstallationId::from_u128;
    // High up, where no process of this machine is by chance.
    let base = WantedUsers { first: Some(1_900_000_000), ..wanted.clone() };
    let a = claim(id(1), &state("a"), &base, &[]).unwrap();
    assert_eq!(claim(id(1), &state("a"), &base, &[]).unwrap(), a);
    let b = claim(id(2), &state("b"), &wanted, &[]).unwrap();
    let error = claim(id(3), &state("c"), &base, &[]).unwrap_err();
    assert!(matches!(&error, UsersError::Taken { of, .. } if of.ends_with("a")), "{error}");
    // It has kept nothing of what it was refused.
    assert_eq!(fs::read_dir(&wanted.folder).unwrap().count(), 3);
    assert!(!claim(id(3), &state("c"), &wanted, &[]).unwrap().meets(b));
    fs::remove_dir_all(dir.path().join("a")).unwrap();
    assert_eq!(claim(id(3), &state("c"), &base, &[]).unwrap(), a);
    // A new installation in the place of one that was wiped.
    let error = claim(id(4), &state("d"), &base, &[]).unwrap_err();
    assert!(matches!(error, UsersError::Taken { .. }));
    assert_eq!(claim(id(5), &state("c"), &base, &[]).unwrap(), a);
    // A claim that cannot be read is nobody's to ignore.
    fs::write(wanted.folder.join("x.json"), "{").unwrap();
    assert!(claim(id(5), &state("c"), &base, &[]).unwrap_err().to_string().contains("x.json"));
}
