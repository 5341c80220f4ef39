use super::*;
use crate::journal::backend::Faults;

#[test]
fn a_full_disk_refuses_what_takes_and_commits_what_frees() {
    let dir = tempfile::tempdir().unwrap();
    let faults = Faults::default();
    let journal = open_with(&config(dir.path()), faults.clone()).unwrap();
    block_on(async {
        let create = |n| Batch::new().with(Op::PutVm(Box::new(vm(n, &format!("vm{n}"), 1))));
        journal.commit(create(1)).await.unwrap();
        faults.set_full(true);
        assert!(matches!(journal.commit(create(2)).await, Err(JournalError::NoSpace)));
        assert_eq!(*journal.health().borrow(), JournalHealth::NoSpace);
        assert!(!dir.path().join("reserve").exists());
        let delete = Batch::new().with(Op::RemoveVm { vm_id: VmId::from_u128(1) }).essential();
        journal.commit(delete).await.unwrap();
        assert!(journal.load().unwrap().vms.is_empty());
        assert!(matches!(journal.commit(create(3)).await, Err(JournalError::NoSpace)));
        faults.set_full(false);
        // The space is asked back every two seconds, on a commit.
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(20);
        while journal.commit(create(4)).await.is_err() {
            assert!(std::time::Instant::now() < deadline);
            tokio::task::yield_now().await;
        }
        assert_eq!(*journal.health().borrow(), JournalHealth::Healthy);
        assert!(dir.path().join("reserve").exists());
    });
    let vms = journal.load().unwrap().vms;
    assert_eq!(vms.iter().map(|v| v.name.as_str()).collect::<Vec<_>>(), ["vm4"]);
    shut(journal);
    assert_eq!(open(&config(dir.path())).unwrap().load().unwrap().vms, vms);
}

#[test]
fn a_batch_that_contradicts_the_rows_fails_alone() {
    let dir = tempfile::tempdir().unwrap();
    let journal = open(&config(dir.path())).unwrap();
    block_on(async {
        journal.commit(Batch::new().with(Op::PutVm(Box::new(vm(1, "a", 1))))).await.unwrap();
        let other = Batch::new().with(put_event(2, 1)).with(Op::PutVm(Box::new(vm(2, "a", 1))));
        let fine = Batch::new().with(Op::PutVm(Box::new(vm(3, "b", 1))));
        let (other, fine) = tokio::join!(journal.commit(other), journal.commit(fine));
        assert!(matches!(other, Err(JournalError::NameTaken { holder, .. }) if holder.as_u128() == 1));
        // What is not this host's any more keeps its row and not its name, also when it is written again.
        let lost = VmRow { quarantined: Some("forgotten".into()), ..vm(1, "a", 2) };
        for row in [lost.clone(), vm(4, "a", 1), lost] {
            journal.commit(Batch::new().with(Op::PutVm(Box::new(row)))).await.unwrap();
        }
        let other = journal.commit(Batch::new().with(Op::PutVm(Box::new(vm(5, "a", 1))))).await;
        assert!(matches!(other, Err(JournalError::NameTaken { holder, .. }) if holder.as_u128() == 4));
        fine.unwrap();
        // Nothing of the refused batch is kept.
        assert_eq!(journal.outbox_used().0, 0);
        journal.commit(Batch::new().with(put_event(1, 1))).await.unwrap();
        let again = journal.commit(Batch::new().with(put_event(1, 1))).await;
        assert!(matches!(again, Err(JournalError::SeqTaken { seq: 1, .. })));
    });
}

#[test]
fn agent_events_are_refused_before_the_outbox_is_full_and_state_events_never() {
    let dir = tempfile::tempdir().unwrap();
    let limits = OutboxLimits { max_bytes: 4000, ..OutboxLimits::default() };
    let journal = open(&JournalConfig { outbox: limits, ..config(dir.path()) }).unwrap();
    let agent = |seq| {
        let row = Box::new(event(1, seq, &[0; 100]));
        Batch::new().with(Op::PutOutbox { class: EventClass::Agent, row })
    };
    block_on(async {
        let mut seq = 1;
        while journal.outbox_fill() == OutboxFill::Normal {
            journal.commit(agent(seq)).await.unwrap();
            seq += 1;
        }
        assert!(matches!(journal.commit(agent(seq)).await, Err(JournalError::OutboxFull { .. })));
        while journal.outbox_fill() < OutboxFill::NoChanges {
            journal.commit(Batch::new().with(put_event(1, seq))).await.unwrap();
            seq += 1;
        }
        journal.commit(Batch::new().with(put_event(1, seq))).await.unwrap();
        // Both tables come back as one sequence, in pages.
        let page = journal.outbox_page(VmId::from_u128(1), 2, 500).unwrap();
        assert_eq!(page.iter().map(|r| r.seq).collect::<Vec<_>>(), (2..=seq).collect::<Vec<_>>());
        let key = VmId::from_u128(1);
        journal.commit(Batch::new().with(Op::AckOutbox { key, seq, stream_seq: 99 })).await.unwrap();
        assert_eq!((journal.outbox_used(), journal.outbox_fill()), ((0, 0), OutboxFill::Normal));
        assert_eq!(journal.position(key).unwrap(), Some(Position { seq, stream_seq: 99 }));
    });
}

#[test]
fn many_callers_share_commits() {
    let dir = tempfile::tempdir().unwrap();
    let journal = open(&config(dir.path())).unwrap();
    let before = journal.0.store.commits().unwrap();
    block_on(async {
        let commits = (1..=500).map(|n| journal.commit(Batch::new().with(put_event(n, 1))));
        for result in futures_util::future::join_all(commits).await {
            result.unwrap();
        }
    });
    let groups = journal.0.store.commits().unwrap() - before;
    assert!(groups < 100, "{groups} commits for 500 batches");
    assert_eq!(journal.outbox_used().0, 500);
}
