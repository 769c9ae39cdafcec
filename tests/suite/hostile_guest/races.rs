//! Memory that changes while the daemon reads it: what it checked must be what it uses.

use nix::errno::Errno;
use tests::frontend::memory::GuestBuffer;
use tests::frontend::ring::{DESC_NEXT, DESC_WRITE, Descriptor};
use tests::frontend::{Queue, Shape};
use tests::fuse::wire::{self, IN_HEADER, OUT_HEADER, ROOT, opcode};
use tests::meanwhile::meanwhile;
use zerocopy::{FromBytes, IntoBytes};

use crate::{VICTIM, WITNESS, assert_still_serving, is_broken, set_up_again, with_guest};

const ROUNDS: usize = 2000;

/// Sends the request in `message` over and over while it changes; what the replies' errors were.
fn replies(
    queue: &mut Queue,
    message: &[u8],
    change: impl Fn(&GuestBuffer, usize, usize) + Sync,
) -> Vec<Option<i32>> {
    let slot = queue.take().unwrap();
    let shape = Shape::new(message.len() as u32, 0, 4096, 0);
    let (buffer, start) = (queue.request(slot).clone(), shape.start as usize);
    buffer.write(start, message);
    let results = meanwhile(
        |round| change(&buffer, start, round),
        || {
            (0..ROUNDS)
                .map(|_| {
                    queue.submit(slot, shape);
                    queue.flush();
                    let used = queue.wait().expect("each request is answered").len;
                    let (reply, at) = queue.reply(slot);
                    let header = wire::OutHeader::read_from_bytes(&reply.to_vec(at, OUT_HEADER)).unwrap();
                    assert!(used == 0 || header.len == used, "used {used}, header {header:?}");
                    (used > 0).then_some(header.error)
                })
                .collect()
        },
    );
    queue.put(slot);
    results
}

#[test]
fn a_name_that_changes_never_leads_out() {
    with_guest(|_, session| {
        let client = &mut session.clients[VICTIM];
        let dir = client.mkdir(ROOT, "dir", 0o755).unwrap().nodeid;
        let name = b"xx/yy\0";
        let header = client.header(opcode::MKDIR, dir, 8 + name.len());
        let body = [wire::MkdirIn { mode: 0o755, umask: 0 }.as_bytes(), name].concat();
        let message = [header.as_bytes(), &body].concat();
        let errors = replies(client.queue_mut(), &message, |buffer, start, round| {
            let byte = if round % 2 == 0 { b"z" } else { b"/" };
            buffer.write(start + IN_HEADER + 8 + 2, byte);
        });
        // The name is either "xx/yy", refused by the decoder, or "xxzyy", made once. "xx/yy" seen by the
        // kernel would be ENOENT.
        let allowed = [0, -(Errno::EEXIST as i32), -(Errno::EINVAL as i32)];
        for error in errors {
            assert!(error.is_some_and(|error| allowed.contains(&error)), "{error:?}");
        }
    });
}

#[test]
fn a_header_that_changes_is_one_or_the_other() {
    with_guest(|_, session| {
        let client = &mut session.clients[VICTIM];
        let header = client.header(opcode::LOOKUP, ROOT, 5);
        let message = [header.as_bytes(), b"file\0"].concat();
        let lengths = [45u32, 40, 41, 0, u32::MAX, 1 << 20];
        let opcodes =
            [opcode::LOOKUP, opcode::FORGET, opcode::WRITE, opcode::BATCH_FORGET, 999, opcode::INIT];
        let nodes = [ROOT, 0, u64::MAX];
        let _ = replies(client.queue_mut(), &message, |buffer, start, round| {
            buffer.write(start, &lengths[round % lengths.len()].to_ne_bytes());
            buffer.write(start + 4, &opcodes[round % opcodes.len()].to_ne_bytes());
            buffer.write(start + 16, &nodes[round % nodes.len()].to_ne_bytes());
        });
        // INIT may have come through and begun a new session.
        client.init(wire::init::GUEST).unwrap();
    });
}

#[test]
fn data_lengths_that_change() {
    with_guest(|share, session| {
        let client = &mut session.clients[VICTIM];
        let made = client.create(ROOT, "made", libc::O_RDWR, 0o100_644).unwrap();
        let write = wire::WriteIn { fh: made.open.fh, size: 64, ..Default::default() };
        let header = client.header(opcode::WRITE, made.entry.nodeid, size_of_val(&write) + 64);
        let message = [header.as_bytes(), write.as_bytes(), &[b'd'; 64]].concat();
        let _ = replies(client.queue_mut(), &message, |buffer, start, round| {
            let sizes = [64u32, 0, 65, 1 << 20, u32::MAX];
            buffer.write(start + IN_HEADER + 16, &sizes[round % sizes.len()].to_ne_bytes());
        });
        let len = share.read("made").len();
        assert!(len <= 64, "{len} bytes were written of 64");
    });
}

#[test]
fn descriptors_that_change() {
    with_guest(|_, session| {
        let memory = session.device.memory();
        let (message, reply, table) =
            (memory.allocate(4096, 4096), memory.allocate(4096, 4096), memory.allocate(4096, 4096));
        let mut broken = 0;
        for _ in 0..100 {
            let client = &mut session.clients[VICTIM];
            message.write(0, client.header(opcode::STATFS, ROOT, 0).as_bytes());
            let queue = client.queue_mut();
            let good = [
                Descriptor { address: message.guest_address(), len: 40, flags: DESC_NEXT, next: 1 },
                Descriptor { address: reply.guest_address(), len: 96, flags: DESC_WRITE, next: 0 },
            ];
            let descriptors = queue.ring().descriptors().clone();
            let bad = [
                Descriptor { next: 0, ..good[0] },
                Descriptor { next: u16::MAX, ..good[0] },
                Descriptor { len: u32::MAX, ..good[0] },
                Descriptor { address: u64::MAX - 4, ..good[0] },
                Descriptor { address: table.guest_address(), len: 4096, flags: 4, next: 0 },
            ];
            good[1].write_to(&descriptors, 1);
            let ended = meanwhile(
                |round| {
                    if round % 2 == 0 { good[0] } else { bad[round / 2 % bad.len()] }
                        .write_to(&descriptors, 0)
                },
                || {
                    for _ in 0..queue.ring().size() {
                        queue.ring_mut().push(0);
                    }
                    queue.ring_mut().publish();
                    queue.kick();
                    (0..queue.ring().size()).find_map(|_| wait_used_or_broken(queue))
                },
            );
            broken += usize::from(ended.is_some());
            assert_still_serving(session, WITNESS);
            set_up_again(session);
            assert_still_serving(session, VICTIM);
        }
        assert!(broken > 0, "no race was won: the test tests nothing");
    });
}

/// Waits for one returned chain; `Some` when the daemon says that the virtqueue is broken instead.
fn wait_used_or_broken(queue: &mut Queue) -> Option<()> {
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
    loop {
        if queue.ring_mut().pop().is_some() {
            return None;
        }
        if is_broken(queue) {
            nix::unistd::read(queue.error_fd(), &mut [0; 8]).expect("read an eventfd");
            return Some(());
        }
        queue.arm();
        let mut fds = [
            PollFd::new(queue.call_fd(), PollFlags::POLLIN),
            PollFd::new(queue.error_fd(), PollFlags::POLLIN),
        ];
        poll(&mut fds, PollTimeout::from(100u8)).expect("poll eventfds");
        queue.acknowledge_call();
    }
}
