//! READ and WRITE with pages that don't lie side by side, as a guest's page cache may have them: here in reverse order.

use zerocopy::{FromBytes, IntoBytes};

use super::client::body_of;
use super::wire::{self, IN_HEADER, OUT_HEADER, opcode};
use super::{Client, Result};
use crate::frontend::memory::PAGE;
use crate::frontend::queue::{HEADROOM, Segment};

/// Where each page of so many bytes lies in a buffer, and its part of the bytes.
fn pages(size: usize) -> impl Iterator<Item = (usize, std::ops::Range<usize>)> {
    let number = size.div_ceil(PAGE);
    (0..number)
        .map(move |page| (HEADROOM + (number - 1 - page) * PAGE, page * PAGE..size.min((page + 1) * PAGE)))
}

fn segment(writable: bool, offset: usize, len: usize) -> Segment {
    let [offset, len] = [offset, len].map(|n| u32::try_from(n).expect("within a buffer"));
    Segment { writable, offset, len }
}

impl Client {
    /// READ.
    pub fn read_scattered(&mut self, node: u64, fh: u64, offset: u64, size: usize) -> Result<Vec<u8>> {
        let request = wire::ReadIn { fh, offset, size: size as u32, ..Default::default() };
        let reply = HEADROOM - OUT_HEADER;
        let room = pages(size).map(|(at, part)| segment(true, at, part.len()));
        let room: Vec<_> = [segment(true, reply, OUT_HEADER)].into_iter().chain(room).collect();
        self.exchange(opcode::READ, node, request.as_bytes(), &[], &room, |buffer, len| {
            let mut message = buffer.to_vec(reply, OUT_HEADER);
            for (at, part) in pages(size) {
                let there = len.saturating_sub(message.len()).min(part.len());
                message.extend(buffer.to_vec(at, there));
            }
            message
        })
    }

    /// WRITE; returns how many bytes were written. `size` is filled in.
    pub fn write_scattered(&mut self, node: u64, request: wire::WriteIn, data: &[u8]) -> Result<u32> {
        let request = wire::WriteIn { size: data.len() as u32, ..request };
        let reply = OUT_HEADER + size_of::<wire::WriteOut>();
        let room = [segment(true, 0, reply)];
        let body = self.exchange(opcode::WRITE, node, request.as_bytes(), data, &room, |buffer, len| {
            buffer.to_vec(0, len)
        })?;
        Ok(wire::WriteOut::read_from_bytes(&body).expect("a WRITE reply has eight bytes").size)
    }

    fn exchange(
        &mut self,
        opcode: u32,
        node: u64,
        arg: &[u8],
        data: &[u8],
        room: &[Segment],
        reply: impl FnOnce(&crate::frontend::memory::GuestBuffer, usize) -> Vec<u8>,
    ) -> Result<Vec<u8>> {
        let header = self.header(opcode, node, arg.len() + data.len());
        let queue = self.queue_mut();
        let slot = queue.take().expect("this client has one request at a time");
        let buffer = queue.request(slot);
        buffer.write(0, &[header.as_bytes(), arg].concat());
        let mut segments = vec![segment(false, 0, IN_HEADER + arg.len())];
        for (at, part) in pages(data.len()) {
            buffer.write(at, &data[part.clone()]);
            segments.push(segment(false, at, part.len()));
        }
        segments.extend(room);
        queue.submit_segments(slot, &segments);
        queue.flush();
        let completion = queue.wait().unwrap_or_else(|e| panic!("{header:?}: {e}"));
        assert_eq!(completion.slot, slot, "only one request is in flight");
        let message = reply(queue.reply(slot).0, completion.len as usize);
        queue.put(slot);
        body_of(&message, &header)
    }
}
