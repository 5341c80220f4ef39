use std::fs::OpenOptions;
use std::io::Write as _;

use super::*;

struct Server {
    folder: tempfile::TempDir,
    rotations: u32,
}

impl Server {
    fn new() -> Self {
        Self { folder: tempfile::tempdir().unwrap(), rotations: 0 }
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("nats.log")
    }

    fn write(&self, text: &str) {
        let mut file = OpenOptions::new().create(true).append(true).open(self.path()).unwrap();
        file.write_all(text.as_bytes()).unwrap();
    }

    fn set_aside(&mut self) -> PathBuf {
        self.rotations += 1;
        let old = self.folder.path().join(format!("nats.log.2026.11.26.{:02}", self.rotations));
        fs::rename(self.path(), &old).unwrap();
        old
    }

    fn rotate(&mut self) -> PathBuf {
        let old = self.set_aside();
        self.write(&format!("rotated {}\n", self.rotations));
        old
    }
}

fn texts(log: &mut Log) -> Vec<String> {
    let mut all = Vec::new();
    loop {
        let lines = log.read().unwrap();
        if lines.is_empty() {
            return all;
        }
        all.extend(lines.into_iter().map(|line| line.text));
    }
}

#[test]
fn a_log_is_read_once_and_in_order_over_rotations() {
    let mut server = Server::new();
    let mut log = Log::new(&server.path(), None);
    assert_eq!(texts(&mut log), [""; 0], "there is no log yet");
    server.write("start\na\nhal");
    assert_eq!(texts(&mut log), ["start", "a"]);
    server.write("f\nb\n");
    server.rotate();
    server.write("c\n");
    assert_eq!(texts(&mut log), ["half", "b", "rotated 1", "c"]);
    // Several at once, and what was written to a file after it was set aside.
    server.write("d\n");
    let old = server.set_aside();
    OpenOptions::new().append(true).open(old).unwrap().write_all(b"late\nno end").unwrap();
    assert_eq!(texts(&mut log), ["d", "late"], "the new file is not there yet");
    server.write("rotated 2\n");
    server.rotate();
    server.write("e\n");
    assert_eq!(texts(&mut log), ["no end", "rotated 2", "rotated 3", "e"]);
    assert!(!log.take_lost());
}

#[test]
fn a_reader_goes_on_behind_the_line_that_it_knows() {
    let mut server = Server::new();
    server.write("start\na\nb\n");
    server.rotate();
    server.write("c\nd\n");
    server.rotate();
    server.write("e\n");
    let mut all = Vec::new();
    let mut log = Log::new(&server.path(), None);
    loop {
        let lines = log.read().unwrap();
        if lines.is_empty() {
            break;
        }
        all.extend(lines);
    }
    let wanted: Vec<&str> = all.iter().map(|line| line.text.as_str()).collect();
    assert_eq!(wanted, ["start", "a", "b", "rotated 1", "c", "d", "rotated 2", "e"]);
    for (n, line) in all.iter().enumerate() {
        let from: Position = line.end.to_string().parse().unwrap();
        let mut log = Log::new(&server.path(), Some(from));
        assert_eq!(texts(&mut log), wanted[n + 1..]);
        assert!(!log.take_lost());
    }
}

#[test]
fn what_is_gone_is_told_and_the_rest_is_read() {
    let mut server = Server::new();
    server.write("start\na\n");
    let mut log = Log::new(&server.path(), None);
    let end = log.read().unwrap().last().unwrap().end.clone();
    fs::remove_file(server.rotate()).unwrap();
    server.write("b\n");
    assert_eq!(texts(&mut log), ["rotated 1", "b"]);
    assert!(log.take_lost() && !log.take_lost());
    let mut later = Log::new(&server.path(), Some(end));
    assert_eq!(texts(&mut later), ["rotated 1", "b"]);
    assert!(later.take_lost());
}

#[test]
fn a_log_that_is_emptied_begins_anew() {
    let server = Server::new();
    server.write("start, with a long line\na\n");
    let mut log = Log::new(&server.path(), None);
    assert_eq!(texts(&mut log).len(), 2);
    fs::write(server.path(), "").unwrap();
    assert_eq!(texts(&mut log), [""; 0]);
    server.write("again\n");
    assert_eq!(texts(&mut log), ["again"]);
}

#[test]
fn a_line_without_an_end_takes_bounded_memory() {
    let server = Server::new();
    server.write("start\n");
    let mut log = Log::new(&server.path(), None);
    assert_eq!(texts(&mut log), ["start"]);
    for _ in 0..40 {
        server.write(&"x".repeat(LINE / 4));
        assert_eq!(texts(&mut log), [""; 0]);
        assert!(log.open.as_ref().unwrap().rest.capacity() <= 4 * (LINE + CHUNK));
    }
    server.write("\nb\n");
    assert_eq!(texts(&mut log), ["b"]);
}

#[test]
fn a_place_reads_back_and_nothing_else_does() {
    let place = Position { file: "00ff".into(), offset: 7 };
    assert_eq!(place.to_string().parse(), Ok(place));
    for bad in ["", "a", "a.b", "a.-1"] {
        assert_eq!(bad.parse::<Position>(), Err(()), "{bad}");
    }
}
