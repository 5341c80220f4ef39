//! YAML in which each value knows its place: what templates are merged as, and what errors and `explain` point at.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use serde::de::{Deserialize, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};
use serde_json::{Number, Value};
use serde_saphyr::Spanned;

/// A file of a template.
#[derive(Debug, PartialEq, Eq)]
pub struct Source {
    /// As it is shown to those who use the host: it names no folder of the host.
    pub shown: String,
    /// Where it is.
    pub path: PathBuf,
}

/// Where a value stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// The file.
    pub source: Arc<Source>,
    /// The line, from 1; 0 where it is not known.
    pub line: u64,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            0 => f.write_str(&self.source.shown),
            line => write!(f, "{}:{line}", self.source.shown),
        }
    }
}

/// A value with its place.
#[derive(Debug, Clone, PartialEq)]
pub struct Node {
    /// Where it stands.
    pub place: Place,
    /// What it is.
    pub kind: Kind,
}

/// What a value is.
#[derive(Debug, Clone, PartialEq)]
pub enum Kind {
    /// Values by name.
    Map(BTreeMap<String, Node>),
    /// Values in a row.
    List(Vec<Node>),
    /// One value; `null` takes away what is below.
    Scalar(Value),
}

impl Node {
    /// Reads a file's text. An empty one is an empty map.
    ///
    /// # Errors
    /// Where and why it is not YAML.
    pub fn parse(source: &Arc<Source>, text: &str) -> Result<Self, serde_saphyr::Error> {
        let read: Spanned<Raw> = serde_saphyr::from_str(text)?;
        let mut node = Self::of(source, read);
        if node.is_null() {
            node.kind = Kind::Map(BTreeMap::new());
        }
        Ok(node)
    }

    fn of(source: &Arc<Source>, read: Spanned<Raw>) -> Self {
        let place = Place { source: Arc::clone(source), line: read.referenced.line() };
        let kind = match read.value {
            Raw::Scalar(value) => Kind::Scalar(value),
            Raw::List(items) => Kind::List(items.into_iter().map(|item| Self::of(source, item)).collect()),
            Raw::Map(fields) => {
                Kind::Map(fields.into_iter().map(|(name, field)| (name, Self::of(source, field))).collect())
            }
        };
        Self { place, kind }
    }

    /// Whether it is `null`.
    #[must_use]
    pub fn is_null(&self) -> bool {
        self.kind == Kind::Scalar(Value::Null)
    }

    /// The field of a name, if this is a map that has it.
    #[must_use]
    pub fn field(&self, name: &str) -> Option<&Self> {
        match &self.kind {
            Kind::Map(fields) => fields.get(name),
            Kind::List(items) => items.get(name.parse::<usize>().ok()?),
            Kind::Scalar(_) => None,
        }
    }

    /// The value that a path such as `disks.0.image` leads to, or the last one on the way there.
    #[must_use]
    pub fn nearest(&self, path: &str) -> &Self {
        let steps = path.split(['.', '[', ']']).filter(|step| !step.is_empty());
        let mut at = self;
        for step in steps {
            let Some(next) = at.field(step) else { break };
            at = next;
        }
        at
    }

    /// This value with another put over it: maps field by field, `null` takes away, all else is replaced.
    #[must_use]
    pub fn under(self, over: Self) -> Self {
        match (self.kind, over.kind) {
            (Kind::Map(mut fields), Kind::Map(others)) => {
                for (name, other) in others {
                    let below = fields.remove(&name);
                    if !other.is_null() {
                        let node = match below {
                            Some(below) => below.under(other),
                            None => other,
                        };
                        fields.insert(name, node);
                    }
                }
                Self { place: over.place, kind: Kind::Map(fields) }
            }
            (_, kind) => Self { place: over.place, kind },
        }
    }

    /// Without places, and without what is `null`; lists are as they are.
    #[must_use]
    pub fn value(&self) -> Value {
        self.without_places(false)
    }

    fn without_places(&self, listed: bool) -> Value {
        match &self.kind {
            Kind::Scalar(value) => value.clone(),
            Kind::List(items) => items.iter().map(|item| item.without_places(true)).collect(),
            Kind::Map(fields) => {
                let set = fields.iter().filter(|(_, field)| listed || !field.is_null());
                set.map(|(name, field)| (name.clone(), field.without_places(listed))).collect()
            }
        }
    }
}

/// YAML as it is read.
#[derive(Debug)]
enum Raw {
    Map(BTreeMap<String, Spanned<Raw>>),
    List(Vec<Spanned<Raw>>),
    Scalar(Value),
}

impl<'de> Deserialize<'de> for Raw {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(RawVisitor)
    }
}

struct RawVisitor;

impl<'de> Visitor<'de> for RawVisitor {
    type Value = Raw;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value of a template")
    }

    fn visit_bool<E>(self, value: bool) -> Result<Raw, E> {
        Ok(Raw::Scalar(value.into()))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Raw, E> {
        Ok(Raw::Scalar(value.into()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Raw, E> {
        Ok(Raw::Scalar(value.into()))
    }

    fn visit_f64<E: serde::de::Error>(self, value: f64) -> Result<Raw, E> {
        Number::from_f64(value)
            .map(|number| Raw::Scalar(number.into()))
            .ok_or_else(|| E::custom("a number is finite here"))
    }

    fn visit_str<E>(self, value: &str) -> Result<Raw, E> {
        Ok(Raw::Scalar(value.into()))
    }

    fn visit_unit<E>(self) -> Result<Raw, E> {
        Ok(Raw::Scalar(Value::Null))
    }

    fn visit_none<E>(self) -> Result<Raw, E> {
        Ok(Raw::Scalar(Value::Null))
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Raw, D::Error> {
        Raw::deserialize(deserializer)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Raw, A::Error> {
        let mut read = Vec::new();
        while let Some(item) = items.next_element()? {
            read.push(item);
        }
        Ok(Raw::List(read))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut fields: A) -> Result<Raw, A::Error> {
        let mut read = BTreeMap::new();
        while let Some((name, field)) = fields.next_entry::<String, _>()? {
            if read.insert(name.clone(), field).is_some() {
                return Err(A::Error::custom(format!("{name:?} is given twice")));
            }
        }
        Ok(Raw::Map(read))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::Map;

    use super::*;

    fn node(name: &str, text: &str) -> Node {
        let source = Arc::new(Source { shown: name.to_owned(), path: name.into() });
        Node::parse(&source, text).unwrap()
    }

    fn at(node: &Node, path: &str) -> String {
        node.nearest(path).place.to_string()
    }

    #[test]
    fn each_value_knows_its_line() {
        let read =
            node("a", "cpus: 2\nboot:\n  kernel: k # a kernel\n  cmdline: |\n    one\nlist:\n- {image: i}\n");
        assert_eq!(at(&read, "cpus"), "a:1");
        assert_eq!(at(&read, "boot.kernel"), "a:3");
        // A text of several lines begins below its field.
        assert_eq!(at(&read, "boot.cmdline"), "a:5");
        assert_eq!(at(&read, "list[0].image"), "a:7");
        // As near as it goes.
        assert_eq!(at(&read, "list.0.size"), "a:7");
        assert_eq!(read.field("cpus").unwrap().value(), 2);
    }

    #[test]
    fn what_is_over_goes_before_and_null_takes_away() {
        let below = node("below", "a: 1\nmap: {x: 1, y: 2}\nlist: [1, 2]\ngone: {z: 1}\n");
        let over = node("over", "\nmap: {y: 3}\nlist: [3]\ngone: null\nnew: {k: null, l: 1}\n");
        let merged = below.under(over);
        assert_eq!(
            merged.value(),
            serde_json::json!({"a": 1, "map": {"x": 1, "y": 3}, "list": [3], "new": {"l": 1}})
        );
        assert_eq!(at(&merged, "a"), "below:1");
        assert_eq!(at(&merged, "map.x"), "below:2");
        assert_eq!(at(&merged, "map.y"), "over:2");
        assert_eq!(at(&merged, "list"), "over:3");
    }

    #[test]
    fn a_file_of_nothing_sets_nothing() {
        for text in ["", "# only a comment\n", "---\n", "null"] {
            assert_eq!(node("a", text).value(), serde_json::json!({}), "{text:?}");
        }
    }

    fn value() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i32>().prop_map(Value::from),
            "[a-z ]{0,8}".prop_map(Value::from),
        ];
        leaf.prop_recursive(3, 24, 4, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                prop::collection::btree_map("[a-c]", inner, 0..4)
                    .prop_map(|map| Value::Object(map.into_iter().collect())),
            ]
        })
    }

    /// JSON merge patch (RFC 7396), which the rule is.
    fn patched(below: Value, over: &Value) -> Value {
        let Value::Object(over) = over else { return over.clone() };
        let mut fields = match below {
            Value::Object(fields) => fields,
            _ => Map::new(),
        };
        for (name, value) in over {
            let below = fields.remove(name);
            if !value.is_null() {
                fields.insert(name.clone(), patched(below.unwrap_or_default(), value));
            }
        }
        Value::Object(fields)
    }

    fn map() -> impl Strategy<Value = Value> {
        prop::collection::btree_map("[a-c]", value(), 0..4)
            .prop_map(|map| Value::Object(map.into_iter().collect()))
    }

    proptest! {
        #[test]
        fn templates_are_merged_as_json_merge_patch_says(below in map(), over in map()) {
            let read = |value: &Value| node("a", &value.to_string());
            let merged = read(&below).under(read(&over)).value();
            let clean = patched(Value::Null, &below);
            prop_assert_eq!(merged, patched(clean, &over));
        }

        #[test]
        fn any_text_is_read_or_refused(text in "(?s).{0,200}") {
            let source = Arc::new(Source { shown: String::new(), path: PathBuf::new() });
            let _ = Node::parse(&source, &text);
        }
    }
}
