//! Accounts, users and what they may do.

use std::collections::BTreeSet;

use drover_actors::bus::assets::AssetsConfig;
use drover_actors::bus::permissions::{self, INBOX, RELAYED};
use drover_schemas::Token;
use drover_schemas::subject::Subjects;
use drover_schemas::verbs::{Grants, Plane, Role, VERBS, stream};

use super::conf::Conf;
use super::file::{Checked, Mode, Namespace, Secret};
use super::{HOSTS, SYSTEM};

/// Every account.
pub(super) fn all(checked: &Checked) -> Conf {
    let file = &checked.file;
    let subjects = Subjects::new(file.root.clone());
    let mut accounts = vec![(SYSTEM.to_owned(), Conf::map([("users", Conf::List(Vec::new()))]))];
    let mut users = hosts_users(checked, &subjects);
    let mut hosts = vec![("jetstream", Conf::word("enabled"))];
    let mut tenants = Vec::new();
    match file.mode {
        Mode::Single => {
            for namespace in &file.namespaces {
                users.extend(namespace_users(checked, &subjects, namespace));
            }
        }
        Mode::Tenants => {
            hosts.push(("exports", exports(checked, &subjects)));
            for namespace in &file.namespaces {
                let users = namespace_users(checked, &subjects, namespace);
                let account =
                    [("users", Conf::List(users)), ("imports", imports(&subjects, &namespace.name))];
                tenants.push((namespace.name.to_string(), Conf::map(account)));
            }
        }
    }
    hosts.push(("users", Conf::List(users)));
    accounts.push((HOSTS.to_owned(), Conf::map(hosts)));
    accounts.extend(tenants);
    Conf::map(accounts)
}

fn hosts_users(checked: &Checked, subjects: &Subjects) -> Vec<Conf> {
    let file = &checked.file;
    let assets = AssetsConfig::new(file.root.clone());
    let hosts = file.hosts.iter().map(|host| {
        let mut grants = Grants::of_host(subjects, &host.name);
        grants.publish.extend(permissions::of_host(&assets, &host.name, file.hosts_may_create));
        grants.publish.insert(format!("{INBOX}.>"));
        if file.mode == Mode::Tenants {
            grants.publish.insert(format!("{RELAYED}.>"));
        }
        grants.subscribe.insert("$SRV.>".to_owned());
        user(&host.name, &checked.secrets[&host.name], grants)
    });
    let admins = file.admins.iter().map(|admin| {
        let mut grants = Grants::of_client(subjects, &[Role::Admin], None);
        grants.publish.extend(permissions::of_admin());
        user(&admin.name, &checked.secrets[&admin.name], grants)
    });
    let auditors = file.auditors.iter().map(|auditor| {
        let mut grants = Grants::of_auditor(subjects);
        grants.publish.extend(permissions::of_auditor(&assets, subjects));
        user(&auditor.name, &checked.secrets[&auditor.name], grants)
    });
    hosts.chain(admins).chain(auditors).collect()
}

fn namespace_users(checked: &Checked, subjects: &Subjects, namespace: &Namespace) -> Vec<Conf> {
    let of = |one: &super::file::User| {
        let roles: Vec<Role> = one.roles.iter().map(|role| role.role()).collect();
        let grants = Grants::of_client(subjects, &roles, Some(&namespace.name));
        user(&one.name, &checked.secrets[&one.name], grants)
    };
    namespace.users.iter().map(of).collect()
}

/// A user, who hears replies in an inbox that nobody else may listen to.
fn user(name: &Token, secret: &Secret, mut grants: Grants) -> Conf {
    grants.subscribe.insert(format!("{INBOX}.{name}.>"));
    let who = match secret {
        Secret::Nkey(key) => vec![("nkey", Conf::text(key))],
        Secret::Hash(hash) => vec![("user", Conf::text(name.as_str())), ("password", Conf::text(hash))],
    };
    let allow = |subjects: BTreeSet<String>| Conf::map([("allow", Conf::texts(subjects))]);
    let permissions = Conf::map([("publish", allow(grants.publish)), ("subscribe", allow(grants.subscribe))]);
    Conf::map(who.into_iter().chain([("permissions", permissions)]))
}

/// What the hosts lend to each namespace, and to it alone.
fn exports(checked: &Checked, subjects: &Subjects) -> Conf {
    let mut exports = Vec::new();
    let threshold = format!("{}s", checked.file.response_threshold_s);
    for namespace in &checked.file.namespaces {
        let ns = Some(&namespace.name);
        let service = |subject: String, kind: &'static str| {
            Conf::map([
                ("service", Conf::Text(subject)),
                ("response_type", Conf::word(kind)),
                ("response_threshold", Conf::text(&threshold)),
                ("accounts", Conf::texts([namespace.name.as_str()])),
            ])
        };
        for row in VERBS.iter().filter(|row| row.plane != Plane::Host) {
            // The server remembers a request of kind `stream` as long as the threshold, after each reply anew,
            // and another only until it is answered; so only what opens streams is of that kind.
            let kind = if stream(row.plane, row.verb).is_some() { "stream" } else { "singleton" };
            exports.push(service(subjects.verb_pattern(row, ns), kind));
        }
        exports.push(service(subjects.frames(ns), "stream"));
        for told in [subjects.events_of(ns), subjects.samples_of(ns)] {
            let accounts = Conf::texts([namespace.name.as_str()]);
            exports.push(Conf::map([("stream", Conf::Text(told)), ("accounts", accounts)]));
        }
    }
    Conf::List(exports)
}

fn imports(subjects: &Subjects, ns: &Token) -> Conf {
    let from =
        |subject: String| Conf::map([("account", Conf::text(HOSTS)), ("subject", Conf::Text(subject))]);
    let requests = VERBS.iter().filter(|row| row.plane != Plane::Host).map(|row| {
        let subject = subjects.verb_pattern(row, Some(ns));
        // Who it is goes along with each request, in a header that only the server writes.
        Conf::map([("service", from(subject)), ("share", Conf::Bool(true))])
    });
    let frames = Conf::map([("service", from(subjects.frames(Some(ns))))]);
    let told = [subjects.events_of(Some(ns)), subjects.samples_of(Some(ns))];
    let told = told.into_iter().map(|subject| Conf::map([("stream", from(subject))]));
    Conf::List(requests.chain([frames]).chain(told).collect())
}
