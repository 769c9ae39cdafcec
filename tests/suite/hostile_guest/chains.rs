//! Descriptor chains and ring indices.

use tests::frontend::device::MEMORY_START;
use tests::frontend::memory::GuestBuffer;
use tests::frontend::ring::{
    DESC_INDIRECT, DESC_NEXT, DESC_WRITE, DESCRIPTOR_SIZE, Descriptor, SplitRing, Used,
};
use tests::fuse::Client;
use tests::fuse::Session;
use tests::fuse::wire::{IN_HEADER, OUT_HEADER, ROOT, StatfsOut, opcode};
use zerocopy::IntoBytes;

use crate::{
    VICTIM, WITNESS, assert_still_serving, is_broken, reset_and_mount, set_up_again, wait_until_broken,
    with_guest,
};

/// What a chain can be made of: a good request, room for its reply, room for an indirect table.
struct Parts {
    request: Descriptor,
    reply: Descriptor,
    table: GuestBuffer,
    /// The guest address behind the last byte of guest memory.
    end: u64,
}

const REPLY: u32 = (OUT_HEADER + size_of::<StatfsOut>()) as u32;

impl Parts {
    fn new(session: &mut Session) -> Parts {
        let memory = session.device.memory();
        let end = memory.regions().iter().map(|r| r.description()).map(|r| r.guest + r.size).max();
        let (table, message, reply) =
            (memory.allocate(0x10000, 4096), memory.allocate(4096, 4096), memory.allocate(4096, 4096));
        let client = &mut session.clients[VICTIM];
        message.write(0, client.header(opcode::STATFS, ROOT, 0).as_bytes());
        let (request, len) = (message.guest_address(), IN_HEADER as u32);
        Parts {
            request: Descriptor { address: request, len, flags: 0, next: 0 },
            reply: Descriptor { address: reply.guest_address(), len: REPLY, flags: DESC_WRITE, next: 0 },
            table,
            end: end.expect("a guest has memory"),
        }
    }

    /// An indirect table of these descriptors, claimed to be `len` bytes long.
    fn indirect(&self, entries: &[Descriptor], len: u32) -> Descriptor {
        for (index, entry) in entries.iter().enumerate() {
            entry.write_to(&self.table, index);
        }
        Descriptor { address: self.table.guest_address(), len, flags: DESC_INDIRECT, next: 0 }
    }
}

fn next(descriptor: Descriptor, next: u16) -> Descriptor {
    Descriptor { flags: descriptor.flags | DESC_NEXT, next, ..descriptor }
}

fn chain(ring: &mut SplitRing, descriptors: &[Descriptor]) {
    for (index, descriptor) in descriptors.iter().enumerate() {
        descriptor.write_to(ring.descriptors(), index);
    }
    ring.push(0);
}

const ENTRY: u32 = DESCRIPTOR_SIZE as u32;

/// A way to break a virtqueue, by name.
type Attack = (&'static str, fn(&mut SplitRing, &Parts));

/// What no driver may do: the device needs a reset afterwards (virtio 1.3, 2.1.2).
const ATTACKS: &[Attack] = &[
    ("a head beyond the table", |ring, _| ring.push(ring.size())),
    ("a head far beyond the table", |ring, _| ring.push(u16::MAX)),
    ("a chain to itself", |ring, parts| chain(ring, &[next(parts.request, 0)])),
    ("a circle of two", |ring, parts| chain(ring, &[next(parts.request, 1), next(parts.request, 0)])),
    ("a circle of replies", |ring, parts| {
        chain(ring, &[next(parts.request, 1), next(parts.reply, 2), next(parts.reply, 1)]);
    }),
    ("a link beyond the table", |ring, parts| chain(ring, &[next(parts.request, ring.size())])),
    ("a link far beyond the table", |ring, parts| chain(ring, &[next(parts.request, u16::MAX)])),
    ("an available index that jumps", |ring, parts| {
        chain(ring, &[next(parts.request, 1), parts.reply]);
        ring.set_available_index(ring.published_index().wrapping_add(ring.size() + 1));
    }),
    ("an available index that goes back", |ring, _| {
        ring.set_available_index(ring.published_index().wrapping_sub(1));
    }),
    ("an empty indirect table", |ring, parts| chain(ring, &[parts.indirect(&[parts.request], 0)])),
    ("a cut indirect table", |ring, parts| {
        let table = parts.indirect(&[next(parts.request, 1), parts.reply], 2 * ENTRY - 1);
        chain(ring, &[table]);
    }),
    ("an indirect table larger than any", |ring, parts| {
        chain(ring, &[parts.indirect(&[next(parts.request, 1), parts.reply], ENTRY * 0x10000)]);
    }),
    ("an indirect table as large as a number", |ring, parts| {
        chain(ring, &[parts.indirect(&[next(parts.request, 1), parts.reply], !(ENTRY - 1))]);
    }),
    ("an indirect table outside memory", |ring, parts| {
        chain(ring, &[Descriptor { address: parts.end, ..parts.indirect(&[], ENTRY) }]);
    }),
    ("an indirect table at the end of all addresses", |ring, parts| {
        chain(ring, &[Descriptor { address: u64::MAX - 7, ..parts.indirect(&[], ENTRY * 16) }]);
    }),
    ("an indirect table across the end of memory", |ring, parts| {
        chain(ring, &[Descriptor { address: parts.end - 8, ..parts.indirect(&[], ENTRY * 16) }]);
    }),
    ("an indirect table in an indirect table", |ring, parts| {
        let inner = parts.indirect(&[], ENTRY);
        chain(ring, &[parts.indirect(&[inner], ENTRY)]);
    }),
    ("a circle in an indirect table", |ring, parts| {
        chain(ring, &[parts.indirect(&[next(parts.request, 1), next(parts.request, 0)], 2 * ENTRY)]);
    }),
    ("the longest circle in an indirect table", |ring, parts| {
        chain(ring, &[parts.indirect(&[next(parts.request, 0)], ENTRY * 0xffff)]);
    }),
    ("a link beyond an indirect table", |ring, parts| {
        chain(ring, &[parts.indirect(&[next(parts.request, 2), parts.reply], 2 * ENTRY)]);
    }),
    ("a buffer before memory", |ring, parts| {
        let reply = Descriptor { address: MEMORY_START - 1, ..parts.reply };
        chain(ring, &[next(parts.request, 1), reply]);
    }),
    ("a buffer behind memory", |ring, parts| {
        chain(ring, &[next(parts.request, 1), Descriptor { address: parts.end, ..parts.reply }]);
    }),
    ("a buffer across the end of memory", |ring, parts| {
        chain(ring, &[next(parts.request, 1), Descriptor { address: parts.end - 8, ..parts.reply }]);
    }),
    ("a buffer whose end wraps", |ring, parts| {
        let reply = Descriptor { address: u64::MAX - 8, ..parts.reply };
        chain(ring, &[next(parts.request, 1), reply]);
    }),
    ("a buffer longer than memory", |ring, parts| {
        chain(ring, &[next(parts.request, 1), Descriptor { len: u32::MAX, ..parts.reply }]);
    }),
    ("lengths whose sum wraps", |ring, parts| {
        let long = Descriptor { len: u32::MAX, ..parts.reply };
        chain(ring, &[next(parts.request, 1), next(long, 2), next(long, 3), long]);
    }),
    ("something to read behind something to write", |ring, parts| {
        chain(ring, &[next(parts.reply, 1), parts.request]);
    }),
];

/// Publishes and kicks, whatever the daemon wishes.
fn send(client: &mut Client) {
    client.queue_mut().ring_mut().publish();
    client.queue_mut().kick();
}

#[test]
fn a_broken_virtqueue_stops_alone_and_works_when_set_up_again() {
    with_guest(|_, session| {
        let parts = Parts::new(session);
        for (name, attack) in ATTACKS {
            eprintln!("{name}");
            attack(session.clients[VICTIM].queue_mut().ring_mut(), &parts);
            send(&mut session.clients[VICTIM]);
            wait_until_broken(session.clients[VICTIM].queue());
            // It takes no more requests, the other queue does.
            let victim = session.clients[VICTIM].queue_mut().ring_mut();
            chain(victim, &[next(parts.request, 1), parts.reply]);
            send(&mut session.clients[VICTIM]);
            assert_still_serving(session, WITNESS);
            assert_eq!(session.clients[VICTIM].queue_mut().ring_mut().pop(), None, "{name}: still served");
            set_up_again(session);
            assert_still_serving(session, VICTIM);
        }
        session.daemon.wait_for_stderr("is stopped until", ATTACKS.len());
        let errors = session.daemon.stderr().matches("is stopped until").count();
        assert_eq!(errors, ATTACKS.len(), "one line for each:\n{}", session.daemon.stderr());
    });
}

#[test]
fn a_broken_virtqueue_works_after_a_reset_of_the_device() {
    with_guest(|_, session| {
        let parts = Parts::new(session);
        for (name, attack) in &ATTACKS[..3] {
            eprintln!("{name}");
            attack(session.clients[VICTIM].queue_mut().ring_mut(), &parts);
            send(&mut session.clients[VICTIM]);
            wait_until_broken(session.clients[VICTIM].queue());
            reset_and_mount(session);
            assert_still_serving(session, VICTIM);
        }
    });
}

/// A chain, by name, and the used length with which it comes back.
type Odd = (&'static str, fn(&mut SplitRing, &Parts), u32);

/// Strange, but no driver is forbidden to do it: the chain comes back, the virtqueue goes on.
const ODD: &[Odd] = &[
    ("an empty descriptor", |ring, parts| chain(ring, &[Descriptor { len: 0, ..parts.request }]), 0),
    ("nothing but room", |ring, parts| chain(ring, &[parts.reply]), 0),
    ("nothing but a request", |ring, parts| chain(ring, &[parts.request]), 0),
    (
        "half a header",
        |ring, parts| chain(ring, &[next(Descriptor { len: 20, ..parts.request }, 1), parts.reply]),
        0,
    ),
    (
        "empty descriptors between",
        |ring, parts| {
            let [no_request, no_reply] = [parts.request, parts.reply].map(|d| Descriptor { len: 0, ..d });
            let parts = [next(no_request, 1), next(parts.request, 2), next(no_reply, 3), parts.reply];
            chain(ring, &parts);
        },
        REPLY,
    ),
    (
        "a table of which only the first two entries are used",
        |ring, parts| chain(ring, &[parts.indirect(&[next(parts.request, 1), parts.reply], ENTRY * 0xfff)]),
        REPLY,
    ),
    (
        "room without end",
        |ring, parts| {
            // A reply buffer over all of memory, the request and the rings included.
            let len = u32::try_from(parts.end - MEMORY_START).expect("less than 4 GiB") - 0x20_0000;
            let all = Descriptor { address: MEMORY_START + 0x20_0000, len, ..parts.reply };
            chain(ring, &[next(parts.request, 1), all]);
        },
        REPLY,
    ),
    (
        "a reply into its own request",
        |ring, parts| {
            let reply = Descriptor { address: parts.request.address, ..parts.reply };
            chain(ring, &[next(parts.request, 1), reply]);
        },
        REPLY,
    ),
];

#[test]
fn odd_chains_come_back() {
    with_guest(|_, session| {
        let parts = Parts::new(session);
        for (name, make, used) in ODD {
            eprintln!("{name}");
            make(session.clients[VICTIM].queue_mut().ring_mut(), &parts);
            send(&mut session.clients[VICTIM]);
            let queue = session.clients[VICTIM].queue_mut();
            assert_eq!(queue.wait_used().expect(name), Used { head: 0, len: *used }, "{name}");
            assert!(!is_broken(queue), "{name}: the virtqueue is broken");
            set_up_again(session);
            assert_still_serving(session, VICTIM);
        }
    });
}

#[test]
fn one_chain_in_every_entry() {
    with_guest(|_, session| {
        let parts = Parts::new(session);
        let ring = session.clients[VICTIM].queue_mut().ring_mut();
        // The same head in every entry: each is served as if it were alone.
        chain(ring, &[next(parts.request, 1), parts.reply]);
        for _ in 1..ring.size() {
            ring.push(0);
        }
        send(&mut session.clients[VICTIM]);
        let queue = session.clients[VICTIM].queue_mut();
        for _ in 0..queue.ring().size() {
            assert_eq!(queue.wait_used().expect("a reply"), Used { head: 0, len: REPLY });
        }
        set_up_again(session);
    });
}

#[test]
fn the_high_priority_queue_breaks_alone_too() {
    with_guest(|_, session| {
        {
            let mut hiprio = session.hiprio.lock().unwrap();
            hiprio.ring_mut().push(u16::MAX);
            hiprio.ring_mut().publish();
            hiprio.kick();
            wait_until_broken(&hiprio);
        }
        session.clients[WITNESS].lookup(ROOT, "file").expect("the request queues work");
        set_up_again(session);
    });
}
