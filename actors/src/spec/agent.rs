//! What of the guest agent a request and its template say together.

use std::collections::BTreeSet;

use drover_schemas::body::spec::{AgentEventsSpec, AgentSpec};
use drover_schemas::guest::verb;
use drover_schemas::verbs::{self, Plane, VERBS};
use drover_schemas::{ErrorBody, Token};

use super::{hint, invalid, watch};

/// The most events of a guest's programs, and bytes of them, that a spec may ask for.
const MAX_EVENTS: u64 = 100_000;
const MAX_EVENT_BYTES: u64 = 64 << 20;

/// Single values of the request replace the template's; what the template refuses stays refused.
pub(super) fn resolve(spec: Option<&AgentSpec>, base: Option<&AgentSpec>) -> Result<AgentSpec, ErrorBody> {
    for said in [spec, base].into_iter().flatten() {
        check("spec.agent.allow", said.allow.iter().flatten())?;
        check("spec.agent.deny", &said.deny)?;
        check_events(&said.events)?;
        watch::check(said)?;
    }
    check_checks(spec, base)?;
    let mut agent = spec.or(base).cloned().unwrap_or_default();
    if let Some(base) = base {
        agent.deny.extend(base.deny.iter().cloned());
        agent.allow = match (agent.allow, &base.allow) {
            (Some(own), Some(base)) => Some(&own & base),
            (own, base) => own.or_else(|| base.clone()),
        };
        agent.checks = merged(&agent.checks, &base.checks, |check| &check.name);
        agent.thresholds = merged(&agent.thresholds, &base.thresholds, |threshold| &threshold.name);
    }
    // Together they may be too many.
    watch::check(&agent)?;
    // Both lists say the same of a verb then.
    agent.allow = agent.allow.map(|allow| &allow - &agent.deny);
    Ok(agent)
}

fn check<'a>(field: &str, named: impl IntoIterator<Item = &'a String>) -> Result<(), ErrorBody> {
    let known: BTreeSet<&str> = VERBS.iter().filter(|r| r.plane == Plane::VmGuest).map(|r| r.verb).collect();
    for verb in named {
        if !known.contains(verb.as_str()) {
            let known: Vec<&str> = known.into_iter().collect();
            let hint = hint(verb, &known);
            let shown: String = verb.chars().take(40).collect();
            return Err(invalid(
                field,
                format!("{shown:?} is no verb of a guest; {hint}known: {}", verbs::names(Plane::VmGuest)),
            ));
        }
    }
    Ok(())
}

/// A check of the request is a command of it, which its template may not let it run.
fn check_checks(spec: Option<&AgentSpec>, base: Option<&AgentSpec>) -> Result<(), ErrorBody> {
    let asked = spec.is_some_and(|spec| !spec.checks.is_empty());
    if asked && base.is_some_and(|base| !base.allows(verb::EXEC)) {
        let text =
            "the template does not allow \"exec\" in the guest, and a check is a command; leave it out";
        return Err(invalid("spec.agent.checks", text));
    }
    Ok(())
}

/// Those of the template with those of the request, which come in the place of those with the same name.
fn merged<T: Clone>(own: &[T], base: &[T], name: impl Fn(&T) -> &Token) -> Vec<T> {
    let is_replaced = |one: &&T| own.iter().any(|other| name(other) == name(one));
    base.iter().filter(|one| !is_replaced(one)).chain(own).cloned().collect()
}

fn check_events(events: &AgentEventsSpec) -> Result<(), ErrorBody> {
    let limits = [
        ("per_second", events.per_second.map(u64::from), MAX_EVENTS),
        ("burst", events.burst.map(u64::from), MAX_EVENTS),
        ("bytes_per_second", events.bytes_per_second, MAX_EVENT_BYTES),
    ];
    for (field, asked, most) in limits {
        if asked.is_some_and(|asked| asked > most) {
            return Err(invalid(&format!("spec.agent.events.{field}"), format!("use 0 to {most}")));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use drover_schemas::guest::CheckSpec;

    use super::*;

    fn agent(allow: Option<&[&str]>, deny: &[&str]) -> AgentSpec {
        let set = |names: &[&str]| names.iter().map(|n| (*n).to_owned()).collect();
        AgentSpec { allow: allow.map(set), deny: set(deny), ..AgentSpec::default() }
    }

    #[test]
    fn without_a_word_everything_is_allowed() {
        let resolved = resolve(None, None).unwrap();
        assert_eq!(resolved, AgentSpec::default());
        assert!(VERBS.iter().filter(|r| r.plane == Plane::VmGuest).all(|r| resolved.allows(r.verb)));
    }

    #[test]
    fn a_request_narrows_its_template_and_cannot_widen_it() {
        let template = agent(Some(&["ping", "info", "exec"]), &["put"]);
        let resolved = resolve(Some(&AgentSpec::default()), Some(&template)).unwrap();
        assert!(resolved.allows("exec") && !resolved.allows("put") && !resolved.allows("get"));
        let asked = agent(Some(&["ping", "get", "put", "exec"]), &["exec"]);
        let resolved = resolve(Some(&asked), Some(&template)).unwrap();
        assert_eq!(resolved, agent(Some(&["ping"]), &["exec", "put"]));
        let resolved = resolve(Some(&asked), None).unwrap();
        assert_eq!(resolved, agent(Some(&["get", "ping", "put"]), &["exec"]));
    }

    #[test]
    fn events_have_a_limit_that_can_be_meant() {
        let asks = |events| resolve(Some(&AgentSpec { events, ..AgentSpec::default() }), None);
        let some = AgentEventsSpec { per_second: Some(0), burst: Some(100_000), bytes_per_second: Some(1) };
        assert_eq!(asks(some.clone()).unwrap().events, some);
        let error = asks(AgentEventsSpec { burst: Some(100_001), ..AgentEventsSpec::default() }).unwrap_err();
        assert_eq!(error.details["field"], "spec.agent.events.burst");
    }

    #[test]
    fn checks_go_with_the_templates_where_it_lets_commands_run() {
        let checks = |names: &[&str], program: &str| AgentSpec {
            checks: names
                .iter()
                .map(|name| CheckSpec::new(Token::new(name).unwrap(), vec![program.to_owned()]))
                .collect(),
            ..AgentSpec::default()
        };
        let template = checks(&["a", "b"], "template");
        let resolved = resolve(Some(&checks(&["b", "c"], "own")), Some(&template)).unwrap();
        let found: Vec<_> = resolved.checks.iter().map(|c| (c.name.as_str(), c.argv[0].as_str())).collect();
        assert_eq!(found, [("a", "template"), ("b", "own"), ("c", "own")]);
        assert_eq!(resolve(Some(&AgentSpec::default()), Some(&template)).unwrap().checks, template.checks);

        let strict = AgentSpec { deny: ["exec".to_owned()].into(), ..template };
        let error = resolve(Some(&checks(&["c"], "own")), Some(&strict)).unwrap_err();
        assert_eq!(error.details["field"], "spec.agent.checks");
        // What the template itself checks stays, and who says both means both.
        assert_eq!(resolve(None, Some(&strict)).unwrap().checks.len(), 2);
        assert_eq!(resolve(Some(&strict), None).unwrap().checks.len(), 2);
        let names: Vec<String> = (0..17).map(|n| format!("c{n}")).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let error =
            resolve(Some(&checks(&names[..9], "own")), Some(&checks(&names[9..], "own"))).unwrap_err();
        assert_eq!(error.details["field"], "spec.agent.checks");
    }

    #[test]
    fn what_is_no_verb_is_refused_with_what_was_meant() {
        for (spec, field) in [
            (agent(Some(&["ping", "exce"]), &[]), "spec.agent.allow"),
            (agent(None, &["exce"]), "spec.agent.deny"),
        ] {
            let error = resolve(Some(&spec), None).unwrap_err();
            assert_eq!(error.details["field"], field);
            assert!(error.message.contains("did you mean \"exec\"?"), "{error}");
        }
        // A verb of the VM itself is none of its guest.
        resolve(Some(&agent(None, &["delete"])), None).unwrap_err();
    }
}
