//! Templates: specs that requests are put over, from files of three layers.
//!
//! A template is looked up in the request's namespace, then in the host's, then in those that are built in; the first
//! one counts. A file that names another `template` is put over that one, which is looked up in the file's own layer
//! and those below it; one that names itself is put over the one of that name in the layers below. Maps are put over
//! each other field by field, all else is replaced, and `null` takes away (as JSON merge patch, RFC 7396, has it). A
//! kernel takes away the firmware below it, and firmware the kernel.

mod error;
mod tree;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use drover_schemas::body::spec::VmSpec;
use drover_schemas::body::template::{SpecValue, TemplateLayer, TemplateSummary};
use drover_schemas::{ErrorBody, Token};

pub use error::TemplateError;
use tree::{Kind, Node, Source};

use super::origins::says;
use super::{hint, invalid};

/// The longest file of a template.
const MAX_FILE: u64 = 256 * 1024;
/// The most files that one template is made of.
const MAX_DEPTH: usize = 16;
/// A field has one name in a tree; files may use either.
const ALIASES: [(&str, &str); 1] = [("memory", "memory_bytes")];

/// One template with all that is below it.
#[derive(Debug, Clone, PartialEq)]
pub struct Template {
    /// What lists say of it.
    pub summary: TemplateSummary,
    /// The spec that a request is put over.
    pub spec: VmSpec,
    /// What it sets, and where.
    tree: Node,
}

impl Template {
    /// The place of a field, if the template sets it.
    #[must_use]
    pub fn place(&self, field: &str) -> Option<String> {
        let mut at = &self.tree;
        for step in field.split('.') {
            at = at.field(step)?;
        }
        Some(at.place.to_string())
    }

    /// Each value that it sets, and where.
    #[must_use]
    pub fn values(&self) -> Vec<SpecValue> {
        fn walk(field: &str, node: &Node, values: &mut Vec<SpecValue>) {
            match &node.kind {
                Kind::Map(fields) if !fields.is_empty() => {
                    for (name, node) in fields {
                        let dot = if field.is_empty() { "" } else { "." };
                        walk(&format!("{field}{dot}{name}"), node, values);
                    }
                }
                _ => values.push(SpecValue {
                    field: field.to_owned(),
                    value: if field == "user_data" { "***".to_owned() } else { node.value().to_string() },
                    origin: node.place.to_string(),
                }),
            }
        }
        let mut values = Vec::new();
        walk("", &self.tree, &mut values);
        values
    }

    /// An error about a field that the request left to the template names the file and line of it.
    pub(super) fn blame(&self, request: &VmSpec, error: ErrorBody) -> ErrorBody {
        let Some(field) = error.details.get("field").and_then(|field| field.strip_prefix("spec.")) else {
            return error;
        };
        let first = field.split(['.', '[']).next().unwrap_or_default();
        let request = serde_json::to_value(request).unwrap_or_default();
        if says(&request, field) || self.tree.field(first).is_none() {
            return error;
        }
        let place = self.tree.nearest(field).place.to_string();
        let message = format!("{} (the template sets it in {place})", error.message);
        ErrorBody { message, ..error }.with("origin", place)
    }
}

/// The templates of a host.
#[derive(Debug, Clone, Default)]
pub struct Templates {
    /// Those of all namespaces: the host's and those that are built in.
    host: BTreeMap<Token, Template>,
    /// Those of one namespace.
    namespaces: BTreeMap<Token, BTreeMap<Token, Template>>,
}

/// A file of a template that is not read yet.
#[derive(Debug)]
pub struct TemplateFile {
    layer: Layer,
    path: PathBuf,
    text: String,
}

/// A layer; a higher one goes before a lower one.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Layer {
    BuiltIn,
    Host,
    Namespace(Token),
}

impl Layer {
    /// This one and those below it, highest first.
    fn downwards(&self) -> Vec<Self> {
        match self {
            Self::BuiltIn => vec![Self::BuiltIn],
            Self::Host => vec![Self::Host, Self::BuiltIn],
            Self::Namespace(_) => vec![self.clone(), Self::Host, Self::BuiltIn],
        }
    }

    const fn kind(&self) -> TemplateLayer {
        match self {
            Self::BuiltIn => TemplateLayer::BuiltIn,
            Self::Host => TemplateLayer::Host,
            Self::Namespace(_) => TemplateLayer::Namespace,
        }
    }

    /// How a file of it is named to those who use the host.
    fn shown(&self, path: &Path) -> String {
        let file = path.file_name().unwrap_or_default().to_string_lossy();
        match self {
            Self::BuiltIn => format!("built-in:{file}"),
            Self::Host => format!("host:{file}"),
            Self::Namespace(namespace) => format!("namespace:{namespace}/{file}"),
        }
    }
}

impl Templates {
    /// Those that are built in, from their texts.
    ///
    /// # Errors
    /// [`TemplateError`] names the file, the line and the field.
    pub fn built_in<'a>(files: impl IntoIterator<Item = (&'a str, &'a str)>) -> Result<Self, TemplateError> {
        Self::load(files, None)
    }

    /// Those that are built in, and those of a folder over them: `NAME.yaml` is the host's, `NAMESPACE/NAME.yaml` a
    /// namespace's.
    ///
    /// # Errors
    /// [`TemplateError`]; one broken file refuses the whole folder, so that a typing error is found
    /// when the daemon starts and not when a VM is created.
    pub fn load<'a>(
        built_in: impl IntoIterator<Item = (&'a str, &'a str)>,
        folder: Option<&Path>,
    ) -> Result<Self, TemplateError> {
        let mut files: Vec<TemplateFile> = built_in
            .into_iter()
            .map(|(name, text)| TemplateFile {
                layer: Layer::BuiltIn,
                path: name.into(),
                text: text.to_owned(),
            })
            .collect();
        if let Some(folder) = folder {
            read_folder(folder, &Layer::Host, &mut files)?;
        }
        Self::build(files)
    }

    fn build(files: Vec<TemplateFile>) -> Result<Self, TemplateError> {
        let mut trees = Trees::default();
        for file in files {
            trees.add(file)?;
        }
        let mut templates = Self::default();
        for (key, tree) in &trees.0 {
            let template = trees.template(key, tree)?;
            let (layer, name) = key;
            let of = match layer {
                Layer::Namespace(namespace) => templates.namespaces.entry(namespace.clone()).or_default(),
                _ => &mut templates.host,
            };
            // Lower layers come first.
            of.insert(name.clone(), template);
        }
        Ok(templates)
    }

    /// Names of the templates of all namespaces.
    pub fn names(&self) -> impl Iterator<Item = &Token> {
        self.host.keys()
    }

    /// Names of the templates that are of one namespace, by namespace.
    #[must_use]
    pub fn own_names(&self) -> BTreeMap<Token, Vec<Token>> {
        let names = |(namespace, own): (&Token, &BTreeMap<Token, Template>)| {
            (namespace.clone(), own.keys().cloned().collect())
        };
        self.namespaces.iter().map(names).collect()
    }

    /// What a namespace may use, by name.
    #[must_use]
    pub fn all(&self, namespace: &Token) -> Vec<&Template> {
        let mut all: BTreeMap<&Token, &Template> = self.host.iter().collect();
        all.extend(self.namespaces.get(namespace).into_iter().flatten());
        all.into_values().collect()
    }

    /// The template of a name, as a namespace sees it.
    #[must_use]
    pub fn find(&self, namespace: &Token, name: &Token) -> Option<&Template> {
        self.namespaces.get(namespace).and_then(|own| own.get(name)).or_else(|| self.host.get(name))
    }

    /// As [`Self::find`].
    ///
    /// # Errors
    /// `invalid_argument` with the names that there are.
    pub fn get(&self, namespace: &Token, name: &Token) -> Result<&Template, ErrorBody> {
        self.find(namespace, name).ok_or_else(|| {
            let all = self.all(namespace);
            let known: Vec<&str> = all.iter().map(|template| template.summary.name.as_str()).collect();
            let hint = hint(name.as_str(), &known);
            invalid(
                "spec.template",
                format!("there is no template {name:?}; {hint}known: {}", known.join(", ")),
            )
        })
    }
}

fn read_folder(folder: &Path, layer: &Layer, files: &mut Vec<TemplateFile>) -> Result<(), TemplateError> {
    let list = |source| TemplateError::List { path: folder.to_owned(), source };
    for entry in std::fs::read_dir(folder).map_err(list)? {
        let path = entry.map_err(list)?.path();
        let read = |source| TemplateError::Read { path: path.clone(), source };
        if path.extension().is_some_and(|end| end == "yaml" || end == "yml") {
            let length = std::fs::metadata(&path).map_err(read)?.len();
            if length > MAX_FILE {
                return Err(TemplateError::Long { path, limit: MAX_FILE });
            }
            let text = std::fs::read_to_string(&path).map_err(read)?;
            files.push(TemplateFile { layer: layer.clone(), path, text });
        } else if *layer == Layer::Host && path.is_dir() {
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            let namespace =
                Token::new(name).map_err(|source| TemplateError::Namespace { path: path.clone(), source })?;
            read_folder(&path, &Layer::Namespace(namespace), files)?;
        }
    }
    Ok(())
}

/// The files, each by itself.
#[derive(Debug, Default)]
struct Trees(BTreeMap<(Layer, Token), Node>);

impl Trees {
    fn add(&mut self, file: TemplateFile) -> Result<(), TemplateError> {
        let TemplateFile { layer, path, text } = file;
        let stem = path.file_stem().and_then(|stem| stem.to_str()).unwrap_or_default();
        let name = Token::new(stem).map_err(|source| TemplateError::Name { path: path.clone(), source })?;
        let source = Arc::new(Source { shown: layer.shown(&path), path: path.clone() });
        let mut tree = Node::parse(&source, &text)
            .map_err(|source| TemplateError::Parse { path: path.clone(), source: Box::new(source) })?;
        let Kind::Map(fields) = &mut tree.kind else {
            return Err(TemplateError::Map { path });
        };
        for (alias, field) in ALIASES {
            if let Some(node) = fields.remove(alias) {
                let line = node.place.line;
                if fields.insert(field.to_owned(), node).is_some() {
                    return Err(TemplateError::Twice { path, line, field, alias });
                }
            }
        }
        // By itself first, so that what another file replaces is looked at too.
        typed(&tree)?;
        match self.0.insert((layer, name), tree) {
            None => Ok(()),
            // NAME.yaml beside NAME.yml.
            Some(_) => Err(TemplateError::Same { path }),
        }
    }

    fn template(&self, key: &(Layer, Token), tree: &Node) -> Result<Template, TemplateError> {
        let mut files = Vec::new();
        let tree = self.merged(key, tree, &mut files)?;
        let mut spec = typed(&tree)?;
        spec.template = None;
        let summary = TemplateSummary {
            name: key.1.clone(),
            layer: key.0.kind(),
            files,
            os: spec.os,
            cpus: spec.cpus,
            memory_bytes: spec.memory.map(|memory| memory.0),
        };
        Ok(Template { summary, spec, tree })
    }

    /// A file over what is below it.
    fn merged(
        &self,
        (layer, name): &(Layer, Token),
        tree: &Node,
        files: &mut Vec<String>,
    ) -> Result<Node, TemplateError> {
        files.push(tree.place.source.shown.clone());
        let Some(base) = tree.field("template").filter(|base| !base.is_null()) else {
            return Ok(tree.clone());
        };
        let (path, line) = (tree.place.source.path.clone(), base.place.line);
        if files.len() >= MAX_DEPTH {
            return Err(TemplateError::Deep { path, line, limit: MAX_DEPTH });
        }
        // That it is a name was seen when it was read.
        let wanted = base.value().as_str().unwrap_or_default().to_owned();
        let below = layer.downwards().into_iter().skip(usize::from(wanted == name.as_str()));
        let found = below
            .filter_map(|layer| self.0.get_key_value(&(layer, Token::new(wanted.as_str()).ok()?)))
            .next();
        let Some((key, base)) = found else {
            let known: BTreeSet<&str> = self.0.keys().map(|(_, name)| name.as_str()).collect();
            let hint = hint(&wanted, &known.into_iter().collect::<Vec<_>>());
            return Err(TemplateError::Base { path, line, name: wanted, hint });
        };
        let base = self.merged(key, base, files)?;
        Ok(over(base, tree.clone()))
    }
}

/// A template over the one that it is built on. The name of that one is not inherited.
fn over(mut base: Node, mut tree: Node) -> Node {
    let sets = |node: &Node, part: &str| {
        node.field("boot").and_then(|boot| boot.field(part)).is_some_and(|part| !part.is_null())
    };
    let (kernel, firmware) = (sets(&tree, "kernel"), sets(&tree, "firmware"));
    if let Kind::Map(fields) = &mut base.kind {
        fields.remove("template");
        if let Some(Node { kind: Kind::Map(boot), .. }) = fields.get_mut("boot") {
            boot.retain(|part, _| match part.as_str() {
                "kernel" | "initramfs" => !firmware || kernel,
                "firmware" => !kernel || firmware,
                _ => true,
            });
        }
    }
    if let Kind::Map(fields) = &mut tree.kind {
        fields.remove("template");
    }
    base.under(tree)
}

/// A tree as a spec. What is wrong is told with its file, line and field.
fn typed(tree: &Node) -> Result<VmSpec, TemplateError> {
    let wrong = |field: &str, what: String| {
        let place = &tree.nearest(field).place;
        TemplateError::Field {
            path: place.source.path.clone(),
            line: place.line,
            field: field.to_owned(),
            what,
        }
    };
    if let Kind::Map(fields) = &tree.kind {
        let known = VmSpec::fields();
        if let Some(name) = fields.keys().find(|name| !known.contains(*name)) {
            let known: Vec<&str> = known.iter().map(String::as_str).collect();
            return Err(wrong(
                name,
                format!("is unknown; {}known: {}", hint(name, &known), known.join(", ")),
            ));
        }
    }
    // Parts of a spec stand in replies too, where a later version may have more fields: they do not refuse
    // them by themselves.
    let mut unknown = None;
    let mut track = serde_path_to_error::Track::new();
    let value = tree.value();
    let parsed =
        serde_ignored::deserialize(serde_path_to_error::Deserializer::new(&value, &mut track), |field| {
            unknown.get_or_insert_with(|| field.to_string().replace("?.", ""));
        });
    let spec = parsed
        .map_err(|error: serde_json::Error| wrong(&track.path().to_string(), format!("is wrong: {error}")))?;
    match unknown {
        Some(field) => Err(wrong(&field, "is unknown; check the spelling".to_owned())),
        None => Ok(spec),
    }
}

#[cfg(test)]
mod tests;
