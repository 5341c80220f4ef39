use super::super::record::SpawnError;
use super::*;

fn refused(call: &'static str, errors: &[&str]) -> ApiError {
    let errors = errors.iter().map(|&e| e.to_owned()).collect();
    ApiError { call, kind: ApiErrorKind::Status { code: 500, errors } }
}

/// Chains as Cloud Hypervisor v53 gave them, without their first word "Error from API".
#[test]
fn the_words_of_the_vmm_tell_what_was_refused() {
    const BOOT: &str = "The VM could not boot";
    const NONE: &str = "No such file or directory (os error 2)";
    const DEVICES: &str = "Error from device manager";
    let cases: [(&[&str], CauseKind); 8] = [
        (
            &[
                "Cannot load the kernel into memory",
                "Kernel Loader: failed to load bzImage kernel image: Kernel Loader: Invalid bzImage",
                "Kernel Loader: Invalid bzImage",
            ],
            CauseKind::KernelFormat,
        ),
        (&["Cannot open kernel file", NONE], CauseKind::KernelFormat),
        (&["Cannot open initramfs file", NONE], CauseKind::KernelFormat),
        (&["Firmware too big"], CauseKind::FirmwareFormat),
        (&[DEVICES, "Cannot open disk path", "I/O error (path=/nope op=open)", NONE], CauseKind::DiskRefused),
        (
            &[DEVICES, "Disk image type does not match expected type: specified = qcow2, detected = raw"],
            CauseKind::DiskRefused,
        ),
        (
            &[
                DEVICES,
                "Cannot create virtio-net device",
                "Failed to open taps",
                "Open tap device failed",
                "Unable to configure tap interface",
                "Invalid argument (os error 22)",
            ],
            CauseKind::TapRefused,
        ),
        (&["VM is already created"], CauseKind::VmmError),
    ];
    for (inner, kind) in cases {
        let errors = [&["Error from API", BOOT], inner].concat();
        let cause = of_api(&refused("vm.boot", &errors), &Evidence { step: "boot", ..Evidence::default() });
        assert_eq!(cause.kind, kind, "{errors:?}");
        assert_eq!(cause.message, format!("vm.boot was refused: {}", inner.join(": ")));
        assert_eq!(cause.evidence["vmm_error"], errors.join(": "));
        assert_eq!(cause.evidence["step"], "boot");
    }
}

#[test]
fn bad_firmware_is_not_called_a_bad_kernel() {
    let error = refused(
        "vm.boot",
        &["Error from API", "The VM could not boot", "Cannot load the kernel into memory"],
    );
    let cause = of_boot(&error, true, &Evidence::default());
    assert_eq!(cause.kind, CauseKind::FirmwareFormat);
}

#[test]
fn a_call_without_an_answer_is_a_timeout() {
    let error = ApiError { call: "vm.boot", kind: ApiErrorKind::Timeout { after_ms: 30_000 } };
    let cause = of_api(&error, &Evidence::default());
    assert_eq!(
        (cause.kind, cause.message.as_str()),
        (CauseKind::VmmTimeout, "vm.boot failed: no answer within 30000 ms")
    );
}

#[test]
fn a_kill_is_out_of_memory_only_if_the_kernel_counted_one() {
    let exit = ExitRecord { signal: Some(9), vmm_pid: 7, ..ExitRecord::default() };
    let cause = of_exit(&exit, &Evidence { oom_kills: Some(1), ..Evidence::default() });
    assert_eq!((cause.kind, cause.evidence["oom_kills"].as_str()), (CauseKind::OutOfMemory, "1"));
    let cause = of_exit(&exit, &Evidence { oom_kills: Some(0), ..Evidence::default() });
    assert_eq!((cause.kind, cause.message.as_str()), (CauseKind::VmmSignal, "signal SIGKILL ended the VMM"));
    assert_eq!(cause.evidence["signal"], "9");
}

#[test]
fn a_status_carries_the_words_on_stderr() {
    let exit = ExitRecord { code: Some(1), ..ExitRecord::default() };
    let stderr = "Error: Cloud Hypervisor exited with the following chain of errors:\n  0: Failed to open API socket\n";
    let cause = of_exit(&exit, &Evidence { stderr_tail: stderr, ..Evidence::default() });
    assert_eq!(cause.kind, CauseKind::VmmExit);
    assert_eq!(cause.evidence["exit_code"], "1");
    assert!(cause.evidence["stderr_tail"].contains("Failed to open API socket"));
}

#[test]
fn a_status_of_zero_is_an_exit_whatever_was_said_before() {
    let exit = ExitRecord { code: Some(0), ..ExitRecord::default() };
    let cause = of_exit(&exit, &Evidence { stderr_tail: "Cannot open disk path", ..Evidence::default() });
    assert_eq!(cause.kind, CauseKind::VmmExit);
}

#[test]
fn a_start_that_failed_names_the_step() {
    let step = SpawnError {
        step: "execute /x".into(),
        errno: 2,
        text: "No such file or directory (os error 2)".into(),
    };
    let cause = of_launch(&LaunchError::SetUp(step), &Evidence::default());
    assert_eq!(cause.kind, CauseKind::VmmSpawn);
    assert_eq!(cause.message, "cannot execute /x: No such file or directory (os error 2)");
    assert_eq!(cause.evidence["errno"], "2");
}

#[test]
fn an_unseen_end_says_so() {
    let exit = ExitRecord { unrecorded: Some("the holder is gone".into()), ..ExitRecord::default() };
    let cause = of_exit(&exit, &Evidence::default());
    assert_eq!(
        (cause.kind, cause.evidence["unrecorded"].as_str()),
        (CauseKind::VmmExit, "the holder is gone")
    );
}

#[test]
fn tails_are_cut_at_the_front_between_characters() {
    let long = "ä".repeat(TAIL_MAX);
    let exit = ExitRecord { code: Some(1), ..ExitRecord::default() };
    let cause = of_exit(&exit, &Evidence { console_tail: &long, ..Evidence::default() });
    assert!(cause.evidence["console_tail"].len() <= TAIL_MAX);
}
