//! Malformed messages.

use std::os::fd::BorrowedFd;

use tests::daemon::PATIENCE;
use tests::frontend::memory::Region;
use tests::frontend::messages::{
    Connection, FLAG_NEED_REPLY, FLAG_REPLY, FLAG_VERSION, Request, number, vring_state,
};
use tests::frontend::{Device, DeviceConfig};
use tests::share::Share;

use crate::{LIMIT, assert_fails, command};

/// A message as it goes over the socket.
struct Raw {
    request: u32,
    flags: u32,
    size: u32,
    payload: Vec<u8>,
    fds: usize,
}

impl Raw {
    fn good(request: Request, payload: &[u8], fds: usize) -> Raw {
        let size = u32::try_from(payload.len()).unwrap();
        Raw { request: request as u32, flags: FLAG_VERSION, size, payload: payload.to_vec(), fds }
    }

    fn bytes(&self) -> Vec<u8> {
        let header = [self.request, self.flags, self.size];
        header.into_iter().flat_map(u32::to_ne_bytes).chain(self.payload.iter().copied()).collect()
    }
}

/// After which the daemon has no reason to go on: it closes the connection, says why, and ends with status 1.
fn refused() -> Vec<(&'static str, Raw)> {
    let good = Raw::good;
    let state = |index, value| vring_state(index, value);
    let features = || good(Request::GetFeatures, &[], 0);
    vec![
        ("version 0", Raw { flags: 0, ..features() }),
        ("version 2", Raw { flags: 2, ..features() }),
        ("a reply", Raw { flags: FLAG_VERSION | FLAG_REPLY, ..features() }),
        ("all flags", Raw { flags: u32::MAX, ..features() }),
        ("request 0", Raw { request: 0, ..features() }),
        ("an unknown request", Raw { request: 99, ..features() }),
        ("the largest request", Raw { request: u32::MAX, ..features() }),
        ("a size without end", Raw { size: u32::MAX, ..features() }),
        ("a size beyond the limit", Raw { size: 5000, ..features() }),
        ("a payload where there is none", good(Request::GetFeatures, &[0; 8], 0)),
        ("an fd where there is none", good(Request::GetFeatures, &[], 1)),
        ("no payload", good(Request::SetFeatures, &[], 0)),
        ("a short payload", good(Request::SetFeatures, &[0; 7], 0)),
        ("a long payload", good(Request::SetFeatures, &[0; 9], 0)),
        ("features that were not offered", good(Request::SetFeatures, &number(u64::MAX), 0)),
        ("SET_OWNER twice", good(Request::SetOwner, &[], 0)),
        ("a log without a file", good(Request::SetLogBase, &[0; 16], 0)),
        ("a log with two files", good(Request::SetLogBase, &[0; 16], 2)),
        ("SET_VRING_NUM of no queue", good(Request::SetVringNum, &state(999, 64), 0)),
        ("SET_VRING_NUM 0", good(Request::SetVringNum, &state(0, 0), 0)),
        ("SET_VRING_NUM 65536", good(Request::SetVringNum, &state(0, 65536), 0)),
        ("SET_VRING_BASE of no queue", good(Request::SetVringBase, &state(u32::MAX, 0), 0)),
        ("GET_VRING_BASE of no queue", good(Request::GetVringBase, &state(u32::MAX, 0), 0)),
        ("SET_VRING_ADDR of no queue", good(Request::SetVringAddr, &[0xff; 40], 0)),
        ("SET_VRING_ADDR without memory", good(Request::SetVringAddr, &[0; 40], 0)),
        ("SET_VRING_ADDR with unknown flags", {
            let mut payload = [0; 40];
            payload[4] = 0xfe;
            good(Request::SetVringAddr, &payload, 0)
        }),
        ("SET_VRING_ENABLE of no queue", good(Request::SetVringEnable, &state(999, 1), 0)),
        ("SET_VRING_ENABLE 2", good(Request::SetVringEnable, &state(0, 2), 0)),
        ("SET_VRING_KICK without an fd", good(Request::SetVringKick, &number(0), 0)),
        ("SET_VRING_KICK with two fds", good(Request::SetVringKick, &number(0), 2)),
        ("SET_VRING_KICK with and without an fd", good(Request::SetVringKick, &number(0x100), 1)),
        ("SET_VRING_KICK of no queue", good(Request::SetVringKick, &number(255), 1)),
        ("SET_VRING_CALL of no queue", good(Request::SetVringCall, &number(255), 1)),
        ("SET_VRING_ERR of no queue", good(Request::SetVringErr, &number(255), 1)),
        ("SET_MEM_TABLE of nothing", good(Request::SetMemTable, &state(0, 0), 0)),
        (
            "SET_MEM_TABLE without files",
            good(Request::SetMemTable, &[&state(1, 0)[..], &[1; 32]].concat(), 0),
        ),
        ("SET_MEM_TABLE of more than there are", good(Request::SetMemTable, &state(u32::MAX, 0), 1)),
        (
            "SET_MEM_TABLE with more files",
            good(Request::SetMemTable, &[&state(1, 0)[..], &[1; 32]].concat(), 2),
        ),
        ("SET_MEM_TABLE cut short", good(Request::SetMemTable, &[1, 0, 0, 0], 1)),
        ("ADD_MEM_REG without a file", good(Request::AddMemReg, &[1; 40], 0)),
        ("ADD_MEM_REG with two files", good(Request::AddMemReg, &[1; 40], 2)),
        ("REM_MEM_REG of what is not there", good(Request::RemMemReg, &[1; 40], 0)),
        ("SET_BACKEND_REQ_FD without an fd", good(Request::SetBackendReqFd, &[], 0)),
        ("GET_INFLIGHT_FD, not offered", good(Request::GetInflightFd, &[0; 24], 0)),
        ("SET_INFLIGHT_FD, not offered", good(Request::SetInflightFd, &[0; 24], 1)),
        ("SET_STATUS, not offered", good(Request::SetStatus, &number(0), 0)),
        ("GET_CONFIG, not offered", good(Request::GetConfig, &[0; 12], 0)),
        ("SET_DEVICE_STATE_FD without an fd", good(Request::SetDeviceStateFd, &state(0, 0), 0)),
        ("SET_DEVICE_STATE_FD in no direction", good(Request::SetDeviceStateFd, &state(9, 0), 1)),
        ("SET_DEVICE_STATE_FD in no phase", good(Request::SetDeviceStateFd, &state(0, 9), 1)),
    ]
}

#[test]
fn malformed_messages_end_the_connection() {
    let files: Vec<Region> = (0..2).map(|_| Region::new(0, 4096).unwrap()).collect();
    for (what, message) in refused() {
        eprintln!("{what}");
        tests::bounded::bounded(LIMIT, || {
            let share = Share::new();
            let mut daemon = command(&share).start();
            let device = Device::connect(daemon.connect(), DeviceConfig::default()).expect(what);
            let fds: Vec<BorrowedFd<'_>> = files.iter().take(message.fds).map(Region::file).collect();
            device.connection().send_raw(&message.bytes(), &fds).expect("send");
            assert_fails(&mut daemon, &["vhost-user:", "closing the connection"]);
        });
    }
}

/// A conversation as it should be, as bytes and the number of fds with each message.
fn conversation(region: &Region) -> Vec<(Vec<u8>, usize)> {
    let at = region.description();
    let ack = |mut raw: Raw| {
        raw.flags |= FLAG_NEED_REPLY;
        raw
    };
    let mut all = vec![
        Raw::good(Request::GetFeatures, &[], 0),
        Raw::good(Request::GetProtocolFeatures, &[], 0),
        Raw::good(Request::SetProtocolFeatures, &number(tests::frontend::device::protocol_features::QEMU), 0),
        Raw::good(Request::GetQueueNum, &[], 0),
        Raw::good(Request::GetMaxMemSlots, &[], 0),
        ack(Raw::good(Request::SetOwner, &[], 0)),
        Raw::good(Request::SetFeatures, &number(1 << 32 | 1 << 30 | 1 << 29 | 1 << 28), 0),
        ack(Raw::good(Request::AddMemReg, &at.to_single(), 1)),
    ];
    for index in 0..2 {
        let addresses = tests::frontend::messages::VringAddresses {
            index,
            flags: 0,
            descriptors: at.user,
            used: at.user + 0x2000,
            available: at.user + 0x1000,
            log: 0,
        };
        all.extend([
            Raw::good(Request::SetVringNum, &vring_state(index, 64), 0),
            Raw::good(Request::SetVringBase, &vring_state(index, 0), 0),
            ack(Raw::good(Request::SetVringAddr, &addresses.to_bytes(), 0)),
            Raw::good(Request::SetVringKick, &number(index.into()), 1),
            Raw::good(Request::SetVringCall, &number(index.into()), 1),
            Raw::good(Request::SetVringEnable, &vring_state(index, 1), 0),
        ]);
    }
    all.push(Raw::good(Request::GetVringBase, &vring_state(1, 0), 0));
    all.push(Raw::good(Request::ResetDevice, &[], 0));
    all.push(Raw::good(Request::RemMemReg, &at.to_single(), 0));
    all.iter().map(|raw| (raw.bytes(), raw.fds)).collect()
}

/// xorshift64*: the same mutations in each run.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        let number = self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33;
        usize::try_from(number).expect("31 bits") % limit
    }
}

fn mutate(messages: &mut Vec<(Vec<u8>, usize)>, random: &mut Random) {
    for _ in 0..=random.below(3) {
        let index = random.below(messages.len());
        let (bytes, fds) = &mut messages[index];
        match random.below(7) {
            0 => {
                let at = random.below(bytes.len());
                bytes[at] ^= 1 << random.below(8);
            }
            1 => {
                let at = random.below(bytes.len());
                bytes[at] = [0, 1, 0x7f, 0x80, 0xff][random.below(5)];
            }
            2 => bytes.truncate(random.below(bytes.len()) + 1),
            3 => bytes.extend(std::iter::repeat_n(0xa5, random.below(64))),
            4 => *fds = random.below(4),
            5 => {
                let other = random.below(messages.len());
                messages.swap(index, other);
            }
            _ => {
                let again = messages[index].clone();
                messages.insert(index, again);
            }
        }
    }
}

/// How many conversations; `VIRTIOFSD_TEST_MUTATIONS` asks for more (a long run).
fn mutations() -> u64 {
    std::env::var("VIRTIOFSD_TEST_MUTATIONS").map_or(150, |text| text.parse().expect("a number"))
}

#[test]
fn mutated_conversations_never_hang_or_crash_the_daemon() {
    let files: Vec<Region> = (0..4).map(|_| Region::new(0x1000, 0x4000).unwrap()).collect();
    for seed in 1..=mutations() {
        tests::bounded::bounded(LIMIT, || {
            let mut random = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
            let mut messages = conversation(&files[0]);
            mutate(&mut messages, &mut random);
            let share = Share::new();
            let mut daemon = command(&share).start();
            let stream = daemon.connect();
            let connection = Connection::new(stream.try_clone().unwrap(), PATIENCE);
            for (bytes, fds) in messages {
                let fds: Vec<BorrowedFd<'_>> = files.iter().take(fds).map(Region::file).collect();
                if connection.send_raw(&bytes, &fds).is_err() {
                    break;
                }
            }
            // Nothing more will come: it has to find an end, whatever it made of that.
            let _ = stream.shutdown(std::net::Shutdown::Write);
            let status = daemon.wait(PATIENCE);
            let stderr = daemon.stderr();
            assert!(matches!(status.code(), Some(0 | 1)), "seed {seed}: {status}\n{stderr}");
            for crash in ["it crashed", "SIGSYS", "panicked"] {
                assert!(!stderr.contains(crash), "seed {seed}:\n{stderr}");
            }
        });
    }
}
