//! Bodies of the verbs about templates, and where the values of a spec come from.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::spec::{Os, VmSpec};
use crate::token::Token;

/// One value of a spec and where it comes from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct SpecValue {
    /// The field, with its parents, as in `boot.cmdline`.
    pub field: String,
    /// The value as JSON text; an image by its name, with the start of its digest once it is known.
    pub value: String,
    /// `request`, `default`, the verb that changed it since, or the file and the line in it: `built-in:NAME.yaml:3`,
    /// `host:NAME.yaml:3` or `namespace:NS/NAME.yaml:3`.
    pub origin: String,
}

/// Whose a template is. A later one goes before an earlier one of the same name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum TemplateLayer {
    /// It comes with drover.
    BuiltIn,
    /// It is of the host, for all namespaces.
    Host,
    /// It is of the namespace.
    Namespace,
    /// A layer that this reader does not know.
    #[serde(other)]
    Unknown,
}

/// One template of a list.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct TemplateSummary {
    /// Its name.
    pub name: Token,
    /// Whose it is.
    pub layer: TemplateLayer,
    /// The files that it is made of, the first one goes before the others.
    pub files: Vec<String>,
    /// Family of the guest, if it says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub os: Option<Os>,
    /// Virtual CPUs, if it says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpus: Option<u32>,
    /// Guest memory, if it says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_bytes: Option<u64>,
}

/// The templates that a namespace may use on the host that answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct TemplateListReply {
    /// The host.
    pub host: Token,
    /// Its templates, by name.
    pub templates: Vec<TemplateSummary>,
}

/// Asks for one template.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TemplateGetRequest {
    /// Its name.
    pub name: Token,
}

/// One template as a spec, with what it is built on merged in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct TemplateReply {
    /// The host that answers.
    pub host: Token,
    /// What the list says of it.
    pub template: TemplateSummary,
    /// The spec that a request is put over. Its user-data is not shown.
    pub spec: VmSpec,
    /// Each value that it sets, and where.
    pub values: Vec<SpecValue>,
}
