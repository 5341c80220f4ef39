//! How a guest's CPUs are laid out, how many of them an interface serves and which address that has, and which pages its
//! memory is of: checked, and whether the host has such pages.

use std::collections::HashSet;
use std::net::Ipv4Addr;
use std::path::Path;

use drover_schemas::body::spec::{CpuTopology, HugePages, NicSpec, ResolvedSpec, VmSpec};
use drover_schemas::size::ByteSize;
use drover_schemas::{ErrorBody, ErrorCode};

use super::invalid;

/// Where Linux tells of its pools of huge pages:
/// <https://www.kernel.org/doc/html/latest/admin-guide/mm/hugetlbpage.html>.
pub const POOLS: &str = "/sys/kernel/mm/hugepages";

/// The layout of a spec over its template; its product is the number of CPUs.
///
/// # Errors
/// `invalid_argument` that says what the two are.
pub(super) fn topology(spec: &VmSpec, base: &VmSpec, cpus: u32) -> Result<Option<CpuTopology>, ErrorBody> {
    let Some(topology) = spec.cpu_topology.or(base.cpu_topology) else { return Ok(None) };
    let CpuTopology { packages, dies_per_package, cores_per_die, threads_per_core } = topology;
    let parts = [packages, dies_per_package, cores_per_die, threads_per_core];
    // 16 bits each: it fits.
    let product: u64 = parts.iter().map(|part| u64::from(*part)).product();
    if product == u64::from(cpus) {
        return Ok(Some(topology));
    }
    let text = format!(
        "{} packages of {} dies of {} cores of {} threads are {product} CPUs, and spec.cpus says {cpus}; change one of the two",
        parts[0], parts[1], parts[2], parts[3]
    );
    Err(invalid("spec.cpu_topology", text))
}

/// The most pairs of queues of one interface.
pub const MAX_QUEUES: u32 = 64;

/// Whether each interface has as many pairs of queues as it can: the VMM takes no more than the VM has CPUs.
///
/// # Errors
/// `invalid_argument` with the interface.
pub(super) fn queues(nics: &[NicSpec], cpus: u32) -> Result<(), ErrorBody> {
    let most = cpus.min(MAX_QUEUES);
    match nics.iter().position(|nic| !(1..=most).contains(&nic.queues)) {
        None => Ok(()),
        Some(index) => {
            let text = format!(
                "{} pairs of queues; use 1 to {most} (spec.cpus is {cpus}, and {MAX_QUEUES} are the most)",
                nics[index].queues
            );
            Err(invalid(&format!("spec.nics[{index}].queues"), text))
        }
    }
}

/// The address that an interface is to have.
///
/// # Errors
/// `invalid_argument` if it is none.
pub fn address(index: usize, nic: &NicSpec) -> Result<Option<Ipv4Addr>, ErrorBody> {
    let Some(text) = &nic.ipv4 else { return Ok(None) };
    text.parse().map(Some).map_err(|_| {
        let text = format!("{text:?} is no address of IPv4; write one such as 10.77.0.9");
        invalid(&format!("spec.nics[{index}].ipv4"), text)
    })
}

/// Whether the addresses that interfaces are to have are some, and different ones in each network.
///
/// # Errors
/// `invalid_argument` with the interface.
pub(super) fn addresses(nics: &[NicSpec]) -> Result<(), ErrorBody> {
    let mut seen = HashSet::new();
    for (index, nic) in nics.iter().enumerate() {
        let Some(wanted) = address(index, nic)? else { continue };
        if !seen.insert((&nic.network, wanted)) {
            let text =
                format!("another interface of this VM has {wanted} in network {} already", nic.network);
            return Err(invalid(&format!("spec.nics[{index}].ipv4"), text));
        }
    }
    Ok(())
}

/// The pages of a spec over its template.
///
/// # Errors
/// `invalid_argument` if the memory is no multiple of them.
pub(super) fn pages(spec: &VmSpec, base: &VmSpec, memory: ByteSize) -> Result<Option<HugePages>, ErrorBody> {
    let pages = spec.hugepages.or(base.hugepages);
    let Some(size) = pages.and_then(HugePages::bytes) else { return Ok(None) };
    if !memory.0.is_multiple_of(size) {
        let text = format!("spec.memory_bytes is {memory}, which is no multiple of {}", ByteSize(size));
        return Err(invalid("spec.hugepages", text));
    }
    Ok(pages)
}

/// What a pool of the host says of itself.
fn pool(pools: &Path, size: u64, what: &str) -> Option<u64> {
    let file = pools.join(format!("hugepages-{}kB", size >> 10)).join(what);
    std::fs::read_to_string(file).ok()?.trim().parse().ok()
}

/// Whether the host has pages of a size reserved.
#[must_use]
pub fn has_pages(pools: &Path, pages: HugePages) -> bool {
    pages.bytes().and_then(|size| pool(pools, size, "nr_hugepages")).is_some_and(|all| all > 0)
}

/// Whether the memory of a VM is there in pages of the size that it is to have.
///
/// # Errors
/// `resource_exhausted`, with what is free.
pub fn enough_pages(pools: &Path, spec: &ResolvedSpec) -> Result<(), ErrorBody> {
    let Some(size) = spec.hugepages.and_then(HugePages::bytes) else { return Ok(()) };
    let read = |what| pool(pools, size, what).unwrap_or_default();
    // Pages that are promised to a process are still free, and not ours.
    let free = read("free_hugepages").saturating_sub(read("resv_hugepages"));
    let needed = spec.memory_bytes / size;
    if free >= needed {
        return Ok(());
    }
    let text = format!(
        "the VM needs {needed} huge pages of {} and the host has {free} free; reserve more on it (hugepagesz and hugepages on its kernel's command line, or nr_hugepages below {}), or use another host",
        ByteSize(size),
        pools.display()
    );
    let error = ErrorBody::new(ErrorCode::ResourceExhausted, text).with("field", "spec.hugepages");
    Err(error.with("resource", "hugepages").with("needed", needed).with("free", free))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(json: &str) -> VmSpec {
        serde_json::from_str(json).unwrap()
    }

    #[test]
    fn a_layout_has_as_many_cpus_as_the_spec() {
        let none = VmSpec::default();
        let four = spec(r#"{"cpu_topology": {"packages": 2, "threads_per_core": 2}}"#);
        assert_eq!(topology(&none, &none, 4), Ok(None));
        let found = topology(&none, &four, 4).unwrap().unwrap();
        assert_eq!((found.packages, found.dies_per_package, found.cores_per_die), (2, 1, 1));
        let error = topology(&four, &none, 3).unwrap_err();
        assert_eq!(error.details["field"], "spec.cpu_topology");
        assert!(error.message.contains("are 4 CPUs, and spec.cpus says 3"), "{error:?}");
        let one = spec(r#"{"cpu_topology": {"cores_per_die": 4}}"#);
        assert_eq!(topology(&one, &four, 4).unwrap().unwrap().cores_per_die, 4);
        let most = spec(
            r#"{"cpu_topology": {"packages": 65535, "dies_per_package": 65535, "cores_per_die": 65535, "threads_per_core": 65535}}"#,
        );
        topology(&most, &none, 1).unwrap_err();
        let zero = spec(r#"{"cpu_topology": {"packages": 0}}"#);
        topology(&zero, &none, 1).unwrap_err();
    }

    #[test]
    fn an_address_is_one_of_ipv4_and_of_one_interface() {
        let nics = |text: &str| -> Vec<NicSpec> { serde_json::from_str(text).unwrap() };
        let fits = nics(r#"[{"ipv4": "10.0.0.9"}, {"network": "blue", "ipv4": "10.0.0.9"}, {}, {}]"#);
        assert_eq!(addresses(&fits), Ok(()));
        for second in [r#"{"ipv4": "10.0.0.9"}"#, r#"{"ipv4": "10.0.0.9/24"}"#, r#"{"ipv4": "fd00::9"}"#] {
            let error = addresses(&nics(&format!(r#"[{{"ipv4": "10.0.0.9"}}, {second}]"#))).unwrap_err();
            assert_eq!(error.code, ErrorCode::InvalidArgument);
            assert_eq!(error.details["field"], "spec.nics[1].ipv4", "{second}");
        }
    }

    #[test]
    fn an_interface_has_no_more_queues_than_there_are_cpus() {
        let nics = |numbers: &[u32]| -> Vec<NicSpec> {
            let nic = |queues: &u32| serde_json::from_value(serde_json::json!({"queues": queues})).unwrap();
            numbers.iter().map(nic).collect()
        };
        assert_eq!(serde_json::from_str::<NicSpec>("{}").unwrap().queues, 1);
        for (numbers, cpus) in [(&[][..], 1), (&[1, 1], 1), (&[1, 4], 4), (&[MAX_QUEUES], 255)] {
            assert_eq!(queues(&nics(numbers), cpus), Ok(()), "{numbers:?} of {cpus}");
        }
        for (numbers, cpus) in [(&[1, 0], 4), (&[2, 5], 4), (&[1, MAX_QUEUES + 1], 255), (&[1, u32::MAX], 1)]
        {
            let error = queues(&nics(numbers), cpus).unwrap_err();
            assert_eq!(error.code, ErrorCode::InvalidArgument);
            assert_eq!(error.details["field"], "spec.nics[1].queues", "{numbers:?} of {cpus}");
        }
    }

    #[test]
    fn memory_is_of_whole_pages() {
        let (none, small) = (VmSpec::default(), spec(r#"{"hugepages": "2MiB"}"#));
        let (large, off) = (spec(r#"{"hugepages": "1GiB"}"#), spec(r#"{"hugepages": "none"}"#));
        assert_eq!(pages(&none, &none, ByteSize::mib(63)), Ok(None));
        assert_eq!(pages(&small, &large, ByteSize::mib(64)), Ok(Some(HugePages::TwoMib)));
        assert_eq!(pages(&none, &large, ByteSize::mib(2048)), Ok(Some(HugePages::OneGib)));
        // A request does without what its template asks for.
        assert_eq!(pages(&off, &large, ByteSize::mib(65)), Ok(None));
        let error = pages(&none, &large, ByteSize::mib(1536)).unwrap_err();
        assert_eq!(error.details["field"], "spec.hugepages");
    }

    #[test]
    fn a_host_has_them_or_says_how_it_gets_them() {
        let pools = tempfile::tempdir().unwrap();
        let mut vm = crate::journal::tests::vm(1, "a", 1).spec;
        vm.memory_bytes = 64 << 20;
        assert_eq!(enough_pages(pools.path(), &vm), Ok(()));
        vm.hugepages = Some(HugePages::TwoMib);
        let refused = |vm: &ResolvedSpec| enough_pages(pools.path(), vm).unwrap_err();
        assert_eq!(refused(&vm).details["free"], 0.to_string());
        assert!(!has_pages(pools.path(), HugePages::TwoMib));
        let folder = pools.path().join("hugepages-2048kB");
        std::fs::create_dir(&folder).unwrap();
        let write =
            |name: &str, number: u64| std::fs::write(folder.join(name), format!("{number}\n")).unwrap();
        for (name, number) in [("nr_hugepages", 40), ("free_hugepages", 40), ("resv_hugepages", 8)] {
            write(name, number);
        }
        assert_eq!(enough_pages(pools.path(), &vm), Ok(()));
        assert!(has_pages(pools.path(), HugePages::TwoMib) && !has_pages(pools.path(), HugePages::OneGib));
        write("resv_hugepages", 9);
        let error = refused(&vm);
        assert_eq!(error.code, ErrorCode::ResourceExhausted);
        assert!(error.message.contains("needs 32 huge pages of 2 MiB and the host has 31 free"), "{error:?}");
    }
}
