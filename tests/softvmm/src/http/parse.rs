//! Requests from bytes. Pure: fed with what arrived, gives back whole requests or what was wrong.

/// Largest body that is accepted.
pub const MAX_BODY: usize = 51_200;
/// Longest request line or header line.
pub const MAX_LINE: usize = 1024;

/// Methods that the server knows; only the first two have routes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Method {
    /// Reads.
    Get,
    /// Changes.
    Put,
    /// Parsed, never served.
    Patch,
}

/// A whole request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// How.
    pub method: Method,
    /// The absolute path of the URI.
    pub path: String,
    /// The body, if the length was not zero.
    pub body: Option<Vec<u8>>,
}

/// Why bytes are not a request; the text goes into the answer.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum ParseError {
    /// The request line has another shape, or never ends.
    #[error("Invalid request.")]
    Request,
    /// Not one of the known methods.
    #[error("Invalid HTTP Method: Unsupported HTTP method.")]
    Method,
    /// Not HTTP/1.0 or HTTP/1.1.
    #[error("Invalid HTTP Version: Unsupported HTTP version.")]
    Version,
    /// The URI is empty.
    #[error("Invalid URI: Empty URI not allowed.")]
    Uri,
    /// A header line without a colon.
    #[error("Invalid header. Reason: Header is incorrectly formatted. Key: {0}")]
    Header(String),
    /// A header line that is too long.
    #[error("Invalid header. Reason: Invalid content length. Header: {0}")]
    HeaderSize(String),
    /// A length that is not a number.
    #[error("Invalid header. Reason: Invalid value. Key:{0}; Value:{1}")]
    Value(String, String),
    /// A body above the limit.
    #[error("Request payload with size {0} is larger than the limit of {MAX_BODY} allowed by server.")]
    Body(usize),
}

/// Collects bytes until they are a request.
#[derive(Debug, Default)]
pub struct Parser {
    buffer: Vec<u8>,
    head: Option<Head>,
}

#[derive(Debug)]
struct Head {
    method: Method,
    path: String,
    length: usize,
    complete: bool,
}

impl Parser {
    /// Takes bytes that arrived.
    pub fn feed(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// Forgets everything that arrived.
    pub fn reset(&mut self) {
        self.buffer.clear();
        self.head = None;
    }

    /// The next whole request, if all of it is here.
    ///
    /// # Errors
    /// What is wrong with it. Forget the rest with [`Parser::reset`] before going on.
    pub fn next_request(&mut self) -> Result<Option<Request>, ParseError> {
        loop {
            match &mut self.head {
                Some(head) if head.complete => {
                    if self.buffer.len() < head.length {
                        return Ok(None);
                    }
                    let rest = self.buffer.split_off(head.length);
                    let bytes = std::mem::replace(&mut self.buffer, rest);
                    let Some(head) = self.head.take() else { return Ok(None) };
                    let body = (head.length > 0).then_some(bytes);
                    return Ok(Some(Request { method: head.method, path: head.path, body }));
                }
                head => {
                    let Some(end) = self.buffer.windows(2).position(|w| w == b"\r\n") else {
                        if self.buffer.len() < MAX_LINE {
                            return Ok(None);
                        }
                        let line = String::from_utf8_lossy(&self.buffer[..MAX_LINE]).into_owned();
                        return Err(if head.is_some() {
                            ParseError::HeaderSize(line)
                        } else {
                            ParseError::Request
                        });
                    };
                    let line: Vec<u8> = self.buffer.drain(..end + 2).take(end).collect();
                    match head {
                        None => self.head = Some(request_line(&line)?),
                        Some(head) => header_line(head, &line)?,
                    }
                }
            }
        }
    }
}

fn request_line(line: &[u8]) -> Result<Head, ParseError> {
    let text = String::from_utf8_lossy(line);
    let mut parts = text.splitn(3, ' ');
    let (Some(method), Some(uri), Some(version)) = (parts.next(), parts.next(), parts.next()) else {
        return Err(ParseError::Request);
    };
    let method = match method {
        "GET" => Method::Get,
        "PUT" => Method::Put,
        "PATCH" => Method::Patch,
        _ => return Err(ParseError::Method),
    };
    if uri.is_empty() {
        return Err(ParseError::Uri);
    }
    if version != "HTTP/1.0" && version != "HTTP/1.1" {
        return Err(ParseError::Version);
    }
    let path = match uri.strip_prefix("http://") {
        Some(rest) => rest.find('/').map_or("", |at| &rest[at..]),
        None if uri.starts_with('/') => uri,
        None => "",
    };
    Ok(Head { method, path: path.to_owned(), length: 0, complete: false })
}

fn header_line(head: &mut Head, line: &[u8]) -> Result<(), ParseError> {
    if line.is_empty() {
        if head.length > MAX_BODY {
            return Err(ParseError::Body(head.length));
        }
        head.complete = true;
        return Ok(());
    }
    let text = String::from_utf8_lossy(line);
    let Some((name, value)) = text.split_once(':') else {
        return Err(ParseError::Header(text.into_owned()));
    };
    if name.eq_ignore_ascii_case("content-length") {
        head.length =
            value.trim().parse().map_err(|_| ParseError::Value(name.to_owned(), value.to_owned()))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(bytes: &[u8]) -> Result<Option<Request>, ParseError> {
        let mut parser = Parser::default();
        parser.feed(bytes);
        parser.next_request()
    }

    #[test]
    fn a_request_may_arrive_byte_by_byte() {
        let mut parser = Parser::default();
        let whole = b"PUT /a HTTP/1.1\r\nContent-Length: 2\r\n\r\n{}";
        for byte in &whole[..whole.len() - 1] {
            parser.feed(&[*byte]);
            assert_eq!(parser.next_request(), Ok(None));
        }
        parser.feed(b"}");
        let request = Request { method: Method::Put, path: "/a".into(), body: Some(b"{}".to_vec()) };
        assert_eq!(parser.next_request(), Ok(Some(request)));
        assert_eq!(parser.next_request(), Ok(None));
    }

    #[test]
    fn two_requests_may_arrive_at_once() {
        let mut parser = Parser::default();
        parser.feed(b"GET /a HTTP/1.1\r\n\r\nGET http://x/b HTTP/1.0\r\n\r\n");
        assert_eq!(parser.next_request().map(|r| r.map(|r| r.path)), Ok(Some("/a".into())));
        assert_eq!(parser.next_request().map(|r| r.map(|r| r.path)), Ok(Some("/b".into())));
    }

    #[test]
    fn limits_are_those_of_the_real_server() {
        let put = |n: usize| one(format!("PUT / HTTP/1.1\r\nContent-Length: {n}\r\n\r\n").as_bytes());
        assert_eq!(put(MAX_BODY), Ok(None));
        assert_eq!(put(MAX_BODY + 1), Err(ParseError::Body(MAX_BODY + 1)));
        assert_eq!(one(&[b'x'; MAX_LINE]), Err(ParseError::Request));
        assert_eq!(one(b"POST / HTTP/1.1\r\n"), Err(ParseError::Method));
        assert_eq!(one(b"GET / HTTP/2\r\n"), Err(ParseError::Version));
    }
}
