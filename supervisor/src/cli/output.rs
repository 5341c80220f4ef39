//! Results on stdout: a table for people, JSON or YAML for programs.

use std::io::Write as _;

use comfy_table::{ContentArrangement, Table, presets};
use drover_schemas::ErrorBody;
use serde::Serialize;

use super::exit::CliError;

/// How results are printed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum OutputFormat {
    /// Columns for people.
    #[default]
    Table,
    /// JSON; streams are one object a line.
    Json,
    /// YAML; streams are one document each.
    Yaml,
}

impl OutputFormat {
    /// Prints `value`; as a table by `table`.
    ///
    /// # Errors
    /// The value cannot be written in the format, or stdout is closed.
    pub fn print<T: Serialize>(self, value: &T, table: impl FnOnce(&T) -> String) -> Result<(), CliError> {
        let text = match self {
            Self::Table => table(value),
            Self::Json => serde_json::to_string_pretty(value).map_err(|e| failed("JSON", e))?,
            Self::Yaml => serde_saphyr::to_string(value).map_err(|e| failed("YAML", e))?,
        };
        line(text.trim_end())
    }

    /// Prints one item of a stream.
    ///
    /// # Errors
    /// As [`OutputFormat::print`].
    pub fn print_item<T: Serialize>(
        self,
        value: &T,
        text: impl FnOnce(&T) -> String,
    ) -> Result<(), CliError> {
        match self {
            Self::Table => line(&text(value)),
            Self::Json => line(&serde_json::to_string(value).map_err(|e| failed("JSON", e))?),
            Self::Yaml => {
                let body = serde_saphyr::to_string(value).map_err(|e| failed("YAML", e))?;
                line(&format!("---\n{}", body.trim_end()))
            }
        }
    }

    /// Prints an error to stderr: as JSON where results are JSON, else in words.
    pub fn print_error(self, error: &ErrorBody, next: &str) {
        if self == Self::Json
            && let Ok(text) = serde_json::to_string(error)
        {
            eprintln!("{text}");
            return;
        }
        eprintln!("error: {}: {}", error.code, error.message);
        for (key, value) in &error.details {
            let mut lines = value.lines();
            eprintln!("  {key}: {}", lines.next().unwrap_or_default());
            lines.for_each(|rest| eprintln!("    {rest}"));
        }
        eprintln!("next: {next}");
    }
}

fn failed(format: &'static str, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> CliError {
    CliError::Output { format, source: source.into() }
}

/// One line on stdout, at once: a pipe shall see an event when it happens.
///
/// # Errors
/// Stdout is closed.
pub fn line(text: &str) -> Result<(), CliError> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{text}").and_then(|()| out.flush()).map_err(|e| failed("text", e))
}

/// A table without lines, like those of `ps` and `ls`.
pub fn table(header: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
    if !header.is_empty() {
        table.set_header(header.iter().copied());
    }
    table
}

/// A text of somebody's choice, such as a guest's, without what a terminal would act on.
pub fn safe(text: &str) -> String {
    text.chars().flat_map(|c| if c.is_control() { c.escape_default().collect() } else { vec![c] }).collect()
}

/// The table as text, without the space that pads the last column.
pub fn render(table: &mut Table) -> String {
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    table.lines().map(|line| line.trim_end().to_owned()).collect::<Vec<_>>().join("\n")
}
