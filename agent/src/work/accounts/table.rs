//! A file of `/etc` whose lines are records. What is not asked to change stays as it is, byte by byte, whatever it is.

use drover_schemas::{ErrorBody, ErrorCode};

/// The lines of a file.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Table {
    path: &'static str,
    lines: Vec<Vec<u8>>,
}

/// The fields of a line.
pub(super) fn fields(line: &[u8]) -> impl Iterator<Item = &[u8]> {
    line.split(|byte| *byte == b':')
}

/// A number in a field, as programs read it.
pub(super) fn number(field: Option<&[u8]>) -> Option<u32> {
    std::str::from_utf8(field?).ok()?.parse().ok()
}

/// The members of a field.
pub(super) fn members(field: &[u8]) -> impl Iterator<Item = &[u8]> {
    field.split(|byte| *byte == b',').filter(|member| !member.is_empty())
}

impl Table {
    /// The lines of `bytes`, for errors by the name of the file.
    pub(super) fn parse(path: &'static str, bytes: &[u8]) -> Self {
        let mut lines: Vec<Vec<u8>> = bytes.split(|byte| *byte == b'\n').map(<[u8]>::to_vec).collect();
        // What follows the last end of a line.
        lines.pop_if(|last| last.is_empty());
        Self { path, lines }
    }

    /// The file.
    pub(super) fn bytes(&self) -> Vec<u8> {
        self.lines.iter().flat_map(|line| line.iter().copied().chain([b'\n'])).collect()
    }

    /// Every line.
    pub(super) fn lines(&self) -> impl Iterator<Item = &[u8]> {
        self.lines.iter().map(Vec::as_slice)
    }

    fn place(&self, name: &str) -> Result<Option<usize>, ErrorBody> {
        let mut found =
            (0..).zip(&self.lines).filter(|(_, line)| fields(line).next() == Some(name.as_bytes()));
        let first = found.next().map(|(place, _)| place);
        if found.next().is_some() {
            let text = format!("{} of the guest names {name:?} twice; mend it in the guest first", self.path);
            return Err(ErrorBody::new(ErrorCode::Conflict, text).with("cause", "named_twice"));
        }
        Ok(first)
    }

    /// The line of a name.
    ///
    /// # Errors
    /// `conflict` if there are two: programs differ in which of them counts.
    pub(super) fn get(&self, name: &str) -> Result<Option<&[u8]>, ErrorBody> {
        Ok(self.place(name)?.map(|place| self.lines[place].as_slice()))
    }

    /// Puts a line in the place of the one of that name, or at the end of those that are no references to elsewhere.
    pub(super) fn set(&mut self, name: &str, line: Vec<u8>) -> Result<(), ErrorBody> {
        match self.place(name)? {
            Some(place) => self.lines[place] = line,
            None => {
                let elsewhere = |line: &Vec<u8>| matches!(line.first(), Some(b'+' | b'-'));
                let place = self.lines.iter().position(elsewhere).unwrap_or(self.lines.len());
                self.lines.insert(place, line);
            }
        }
        Ok(())
    }

    /// Puts a value in a field of a line, which gets as many fields as it takes.
    pub(super) fn set_field(&mut self, name: &str, field: usize, value: &[u8]) -> Result<(), ErrorBody> {
        if let Some(place) = self.place(name)? {
            self.lines[place] = with_field(&self.lines[place], field, value);
        }
        Ok(())
    }

    /// Takes the line of a name away.
    pub(super) fn remove(&mut self, name: &str) -> Result<(), ErrorBody> {
        if let Some(place) = self.place(name)? {
            self.lines.remove(place);
        }
        Ok(())
    }

    /// Says of each line whether `member` is to be in a field of it; `None` leaves it alone.
    pub(super) fn set_member(&mut self, field: usize, member: &str, wanted: impl Fn(&[u8]) -> Option<bool>) {
        for line in &mut self.lines {
            let name = fields(line).next().unwrap_or_default();
            let (Some(wanted), Some(now)) = (wanted(name), fields(line).nth(field)) else { continue };
            let is_one = members(now).any(|one| one == member.as_bytes());
            if wanted == is_one {
                continue;
            }
            let mut list: Vec<&[u8]> = members(now).filter(|one| *one != member.as_bytes()).collect();
            if wanted {
                list.push(member.as_bytes());
            }
            *line = with_field(line, field, &list.join(&b','));
        }
    }
}

fn with_field(line: &[u8], field: usize, value: &[u8]) -> Vec<u8> {
    let mut all: Vec<&[u8]> = fields(line).collect();
    all.resize(all.len().max(field + 1), b"");
    all[field] = value;
    all.join(&b':')
}

#[cfg(test)]
mod tests {
    use super::*;

    const GROUP: &str = "root:x:0:\nadm:x:4:syslog,web\n\nbroken\nweb:x:1002:\n+::::\n";

    #[test]
    fn what_is_not_asked_for_stays_as_it_is() {
        let mut table = Table::parse("/etc/group", GROUP.as_bytes());
        assert_eq!(table.bytes(), GROUP.as_bytes());
        table.set("new", b"new:x:7:".to_vec()).unwrap();
        table.set_member(3, "web", |name| match name {
            b"adm" => Some(false),
            b"new" => Some(true),
            _ => None,
        });
        table.remove("web").unwrap();
        table.remove("absent").unwrap();
        table.set_field("root", 3, b"a,b").unwrap();
        let after = "root:x:0:a,b\nadm:x:4:syslog\n\nbroken\nnew:x:7:web\n+::::\n";
        assert_eq!(String::from_utf8(table.bytes()).unwrap(), after);
    }

    #[test]
    fn a_name_that_stands_twice_is_mended_first() {
        let mut table = Table::parse("/etc/passwd", b"web:x:1\nweb:x:2");
        assert_eq!(table.get("web").unwrap_err().code, ErrorCode::Conflict);
        assert!(table.set("web", Vec::new()).is_err() && table.remove("web").is_err());
        assert_eq!(table.bytes(), b"web:x:1\nweb:x:2\n");
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_are_kept(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..300)) {
            let table = Table::parse("/etc/passwd", &bytes);
            let mut whole = bytes.clone();
            if !whole.is_empty() && whole.last() != Some(&b'\n') {
                whole.push(b'\n');
            }
            assert_eq!(table.bytes(), whole);
        }
    }
}
