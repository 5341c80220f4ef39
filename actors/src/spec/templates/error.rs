//! Files of templates that cannot be used.

use std::path::PathBuf;

/// A template file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TemplateError {
    /// The directory cannot be listed.
    #[error("list the templates in {path}")]
    List {
        /// The directory.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The file cannot be read.
    #[error("read template {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The file is too long.
    #[error("template {path} is longer than {limit} bytes")]
    Long {
        /// The file.
        path: PathBuf,
        /// The most bytes.
        limit: u64,
    },
    /// The file's name is not a template name.
    #[error("{path} is not named as a template: use NAME.yaml")]
    Name {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: drover_schemas::token::TokenError,
    },
    /// A folder's name is not a namespace's.
    #[error("{path} is not named as a namespace, whose templates a folder among templates holds")]
    Namespace {
        /// The folder.
        path: PathBuf,
        /// Why.
        #[source]
        source: drover_schemas::token::TokenError,
    },
    /// Two files are one template.
    #[error("template {path} is there twice, as .yaml and as .yml; keep one")]
    Same {
        /// The second one.
        path: PathBuf,
    },
    /// The file is not YAML.
    #[error("template {path} is not valid")]
    Parse {
        /// The file.
        path: PathBuf,
        /// Where and why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The file holds something else than fields.
    #[error("template {path} is not a map of fields, as in \"cpus: 2\"")]
    Map {
        /// The file.
        path: PathBuf,
    },
    /// A field is unknown, or its value of no use.
    #[error("template {path}, line {line}: field {field:?} {what}")]
    Field {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: u64,
        /// The field with its parents, joined by dots.
        field: String,
        /// What is wrong with it.
        what: String,
    },
    /// A field stands there under both of its names.
    #[error("template {path}, line {line}: {alias:?} and {field:?} are the same field; keep one")]
    Twice {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: u64,
        /// The field.
        field: &'static str,
        /// Its other name.
        alias: &'static str,
    },
    /// What the template is built on is not there.
    #[error(
        "template {path}, line {line}: field \"template\": there is no template {name:?} to build on; {hint}look in the template's own folder and those below it"
    )]
    Base {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: u64,
        /// The name.
        name: String,
        /// A name that may be meant.
        hint: String,
    },
    /// Templates are built on each other in a circle, or too deeply.
    #[error(
        "template {path}, line {line}: field \"template\": more than {limit} templates are built on each other, perhaps in a circle"
    )]
    Deep {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: u64,
        /// The most.
        limit: usize,
    },
}
