//! `--set PATH=VALUE`: any value of a spec by its path.

use drover_schemas::body::spec::VmSpec;
use serde_json::{Map, Value};

/// The spec of `base` with each `PATH=VALUE` put in.
///
/// # Errors
/// A text for the caller that names the path.
pub fn spec(base: Map<String, Value>, sets: &[String]) -> Result<VmSpec, String> {
    let mut root = Value::Object(base);
    for text in sets {
        let (path, value) =
            text.split_once('=').ok_or_else(|| format!("--set {text:?} is not PATH=VALUE"))?;
        let path = path.trim().strip_prefix("spec.").unwrap_or(path.trim());
        put(&mut root, path, value_of(value)).map_err(|why| format!("--set {text:?}: {why}"))?;
    }
    // Both spellings name one field; given twice, the reader would refuse it as a duplicate.
    if let Value::Object(map) = &mut root
        && let Some(memory) = map.remove("memory")
    {
        map.insert("memory_bytes".to_owned(), memory);
    }
    serde_json::from_value(root).map_err(|e| format!("the spec: {e}"))
}

/// A number, a truth value, a list or a map where it reads as one, else text.
fn value_of(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|_| Value::String(text.to_owned()))
}

fn put(root: &mut Value, path: &str, value: Value) -> Result<(), String> {
    let mut at = root;
    for step in path.split('.') {
        if step.is_empty() {
            return Err("a step of the path is empty".to_owned());
        }
        at = match step.parse::<usize>() {
            Ok(index) if !at.is_object() => element(at, index)?,
            _ => field(at, step)?,
        };
    }
    *at = value;
    Ok(())
}

fn field<'a>(at: &'a mut Value, step: &str) -> Result<&'a mut Value, String> {
    if at.is_null() {
        *at = Value::Object(Map::new());
    }
    match at {
        Value::Object(map) => Ok(map.entry(step).or_insert(Value::Null)),
        other => Err(format!("{step:?} is below {other}, which is not a map")),
    }
}

fn element(at: &mut Value, index: usize) -> Result<&mut Value, String> {
    if at.is_null() {
        *at = Value::Array(Vec::new());
    }
    match at {
        Value::Array(list) => {
            if index == list.len() {
                list.push(Value::Null);
            }
            let count = list.len();
            list.get_mut(index).ok_or_else(|| format!("element {index} of a list of {count}"))
        }
        other => Err(format!("element {index} is below {other}, which is not a list")),
    }
}

#[cfg(test)]
mod tests {
    use drover_schemas::body::spec::RestartPolicy;

    use super::*;

    fn sets(texts: &[&str]) -> Result<VmSpec, String> {
        let texts: Vec<String> = texts.iter().map(|t| (*t).to_owned()).collect();
        spec(Map::new(), &texts)
    }

    #[test]
    fn a_path_reaches_maps_and_lists() {
        let spec = sets(&[
            "cpus=2",
            "memory=512MiB",
            "boot.cmdline=console=ttyS0 quiet",
            "spec.restart.policy=always",
            "nics.0.network=lan",
            "nics.1.network=wan",
        ])
        .unwrap();
        assert_eq!(spec.cpus, Some(2));
        assert_eq!(spec.memory.unwrap().0, 512 << 20);
        assert_eq!(spec.boot.unwrap().cmdline.as_deref(), Some("console=ttyS0 quiet"));
        assert_eq!(spec.restart.unwrap().policy, RestartPolicy::Always);
        assert_eq!(spec.nics.unwrap().len(), 2);
    }

    #[test]
    fn a_wrong_path_is_told_with_its_name() {
        assert!(sets(&["cpu=2"]).unwrap_err().contains("`cpu`"));
        assert!(sets(&["cpus"]).unwrap_err().contains("PATH=VALUE"));
        assert!(sets(&["nics.3.network=x"]).unwrap_err().contains("element 3"));
        assert!(sets(&["cpus=1", "cpus.x=1"]).unwrap_err().contains("not a map"));
    }
}
