//! What of the processor a guest is given that others may have to pay for: what a request and its template say together,
//! and whether a host does it. Pure.

use drover_schemas::body::spec::{CoreScheduling, ResolvedSpec, SecuritySpec, VmSpec};
use drover_schemas::{ErrorBody, ErrorCode};

use super::invalid;

/// What a host does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Offers {
    /// Its operator lets guests run VMs.
    pub nested: bool,
    /// It keeps threads off each other's cores.
    pub cores: bool,
}

/// What a request says over its template. What the template has closed stays closed.
///
/// # Errors
/// `invalid_argument` that names the field.
pub(super) fn resolve(spec: &VmSpec, base: &VmSpec) -> Result<Option<SecuritySpec>, ErrorBody> {
    let (asked, base) = (spec.security.unwrap_or_default(), base.security.unwrap_or_default());
    let closed = |field: &str, what: &str| {
        Err(invalid(
            field,
            format!("the template says {what}, and a request cannot open that; use another template"),
        ))
    };
    if asked.nested == Some(true) && base.nested == Some(false) {
        return closed("spec.security.nested", "that its guests run no VMs");
    }
    if asked.core_scheduling == Some(CoreScheduling::Vm) && base.core_scheduling == Some(CoreScheduling::Vcpu)
    {
        return closed("spec.security.core_scheduling", "`vcpu`");
    }
    let both = over(asked, base);
    Ok((both != SecuritySpec::default()).then_some(both))
}

/// Each value as it is asked for, else as the template has it.
#[must_use]
pub fn over(asked: SecuritySpec, base: SecuritySpec) -> SecuritySpec {
    SecuritySpec {
        nested: asked.nested.or(base.nested),
        core_scheduling: asked.core_scheduling.or(base.core_scheduling),
    }
}

/// Whether a host does what a spec says; the host is looked at only if it says something.
///
/// # Errors
/// `unsupported`, with what is missing.
pub fn offered(spec: &ResolvedSpec, offers: impl FnOnce() -> Offers) -> Result<(), ErrorBody> {
    let Some(security) = spec.security else { return Ok(()) };
    let offers = offers();
    let refuse = |field: &str, missing: &str, text: &str| {
        let error = ErrorBody::new(ErrorCode::Unsupported, format!("{field}: {text}"));
        Err(error.with("field", field).with("missing", missing))
    };
    if security.nested() && !offers.nested {
        let text = "guests of this host run no VMs; an operator allows it with vmm.nested of the host";
        return refuse("spec.security.nested", "vmm.nested", text);
    }
    if security.core_scheduling() == CoreScheduling::Vcpu && !offers.cores {
        let text = "the host's cores have several threads and its kernel keeps none apart; use a kernel with \
                    CONFIG_SCHED_CORE on it, switch such threads off (`nosmt`), or leave it out";
        return refuse("spec.security.core_scheduling", "core scheduling", text);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(security: &str) -> VmSpec {
        serde_json::from_str(&format!("{{\"security\": {security}}}")).unwrap()
    }

    #[test]
    fn a_request_closes_what_its_template_leaves_open_and_opens_nothing() {
        let none = VmSpec::default();
        assert_eq!(resolve(&none, &none), Ok(None));
        assert_eq!(resolve(&spec("{}"), &spec("{}")), Ok(None));
        let both = |asked: &VmSpec, base: &VmSpec| resolve(asked, base).unwrap().unwrap();
        let (on, off) = (spec(r#"{"nested": true}"#), spec(r#"{"nested": false}"#));
        let (vm, vcpu) = (spec(r#"{"core_scheduling": "vm"}"#), spec(r#"{"core_scheduling": "vcpu"}"#));
        for (asked, base, nested) in
            [(&on, &none, true), (&off, &on, false), (&none, &on, true), (&off, &off, false)]
        {
            assert_eq!(both(asked, base).nested(), nested);
        }
        assert_eq!(both(&vcpu, &vm).core_scheduling(), CoreScheduling::Vcpu);
        // Each value for itself.
        let mixed = both(&on, &vcpu);
        assert_eq!((mixed.nested(), mixed.core_scheduling()), (true, CoreScheduling::Vcpu));
        for (asked, base, field) in
            [(&on, &off, "spec.security.nested"), (&vm, &vcpu, "spec.security.core_scheduling")]
        {
            let error = resolve(asked, base).unwrap_err();
            assert_eq!((error.code, error.details["field"].as_str()), (ErrorCode::InvalidArgument, field));
        }
    }

    #[test]
    fn a_host_does_what_it_offers_and_says_what_it_lacks() {
        let mut vm = crate::journal::tests::vm(1, "a", 1).spec;
        let (none, all) = (Offers { nested: false, cores: false }, Offers { nested: true, cores: true });
        assert_eq!(offered(&vm, || none), Ok(()));
        let closed = SecuritySpec { nested: Some(false), core_scheduling: Some(CoreScheduling::Vm) };
        vm.security = Some(closed);
        assert_eq!(offered(&vm, || none), Ok(()));
        for (security, missing) in [
            (SecuritySpec { nested: Some(true), ..closed }, "vmm.nested"),
            (SecuritySpec { core_scheduling: Some(CoreScheduling::Vcpu), ..closed }, "core scheduling"),
        ] {
            vm.security = Some(security);
            assert_eq!(offered(&vm, || all), Ok(()));
            let error = offered(&vm, || none).unwrap_err();
            assert_eq!((error.code, error.details["missing"].as_str()), (ErrorCode::Unsupported, missing));
        }
    }
}
