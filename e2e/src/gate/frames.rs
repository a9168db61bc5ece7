//! HTTP/2 without TLS, frame by frame: whatever a client library would refuse
//! to send.

use std::net::SocketAddr;

use anyhow::{Context, Result, ensure};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// How a connection begins.
pub const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
/// Also `ACK` of `SETTINGS` and `PING`.
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;
/// Longest frame that a server must take.
const MAX_FRAME: usize = 16_384;

/// Everything that a client sends for one request: the preface, and the
/// request as stream 1. Names and values go out as they are.
#[must_use]
pub fn request(headers: &[(Vec<u8>, Vec<u8>)], body: &[u8]) -> Vec<u8> {
    let mut block = Vec::new();
    for (name, value) in headers {
        // A literal that nobody remembers, not compressed.
        block.push(0);
        for text in [name, value] {
            length(&mut block, text.len());
            block.extend_from_slice(text);
        }
    }
    let mut sent = PREFACE.to_vec();
    sent.extend(frame(SETTINGS, 0, 0, &[]));
    sent.extend(frame(HEADERS, END_HEADERS, 1, &block));
    sent.extend(frame(DATA, END_STREAM, 1, body));
    sent
}

/// Sends one request and waits until the server has ended it one way or the other.
///
/// # Errors
/// When the connection breaks in the middle of a frame.
pub async fn exchange(address: SocketAddr, request: &[u8]) -> Result<()> {
    let mut stream = TcpStream::connect(address).await?;
    stream.write_all(request).await?;
    loop {
        let mut head = [0; 9];
        // Closed without a word: that is an end too.
        let Ok(1..) = stream.read(&mut head[..1]).await else { return Ok(()) };
        stream.read_exact(&mut head[1..]).await.context("a frame was cut off")?;
        let [_, a, b, c] = u32::from_be_bytes([0, head[0], head[1], head[2]]).to_be_bytes();
        let size = usize::try_from(u32::from_be_bytes([0, a, b, c]))?;
        ensure!(size <= MAX_FRAME, "the answer is no HTTP/2: {head:?}");
        let mut payload = vec![0; size];
        stream.read_exact(&mut payload).await.context("a frame was cut off")?;
        let (kind, flags) = (head[3], head[4]);
        match kind {
            SETTINGS | PING if flags & END_STREAM == 0 => {
                let echoed = if kind == PING { payload.as_slice() } else { &[] };
                stream.write_all(&frame(kind, END_STREAM, 0, echoed)).await?;
            }
            DATA | HEADERS if flags & END_STREAM != 0 => return Ok(()),
            RST_STREAM | GOAWAY => return Ok(()),
            _ => {}
        }
    }
}

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let size = u32::try_from(payload.len()).unwrap_or(u32::MAX).to_be_bytes();
    let mut frame = vec![size[1], size[2], size[3], kind, flags];
    frame.extend(stream.to_be_bytes());
    frame.extend_from_slice(payload);
    frame
}

/// An integer with a prefix of 7 bits (RFC 7541, 5.1).
fn length(block: &mut Vec<u8>, length: usize) {
    let Some(mut rest) = length.checked_sub(127) else {
        block.push(u8::try_from(length).unwrap_or(0));
        return;
    };
    block.push(127);
    while rest >= 128 {
        block.push(u8::try_from(rest % 128).unwrap_or(0) | 128);
        rest /= 128;
    }
    block.push(u8::try_from(rest).unwrap_or(0));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_are_written_as_the_specification_shows() {
        let written = |number| {
            let mut block = Vec::new();
            length(&mut block, number);
            block
        };
        assert_eq!(written(10), [10]);
        assert_eq!(written(126), [126]);
        assert_eq!(written(127), [127, 0]);
        assert_eq!(written(127 + 1337), [127, 0b1011_1001, 0b1010]);
    }

    #[test]
    fn a_request_is_preface_settings_head_and_body() {
        let sent = request(&[(b":path".to_vec(), b"/".to_vec())], b"x");
        let rest = sent.strip_prefix(PREFACE).unwrap();
        let settings = [0, 0, 0, SETTINGS, 0, 0, 0, 0, 0];
        let head = [0, 0, 9, HEADERS, END_HEADERS, 0, 0, 0, 1, 0, 5, b':', b'p', b'a', b't', b'h', 1, b'/'];
        let body = [0, 0, 1, DATA, END_STREAM, 0, 0, 0, 1, b'x'];
        assert_eq!(rest, [&settings[..], &head, &body].concat());
    }
}
