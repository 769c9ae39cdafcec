//! How much room a guest's kernel gives each request's reply (Linux 6.18: the `out_args` of each call in
//! `fs/fuse/`).

use zerocopy::FromBytes;

use crate::fuse::wire::{self, OUT_HEADER, opcode};

/// Room for a reply, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Room {
    /// Header and fixed part, in a descriptor each.
    pub fixed: u32,
    /// Data behind it, in pages.
    pub pages: u32,
}

/// What to do with a request from the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Treatment {
    /// On to a request queue, with this room for the reply.
    Forward(Room),
    /// FORGET and BATCH_FORGET: on to the high-priority queue, without a reply.
    Forget,
    /// Stays here: a guest doesn't send it.
    Drop,
    /// We don't know it: it came with a newer kernel.
    Unknown,
}

/// What a guest does with this request; `args` follow its header.
pub fn treatment(opcode: u32, args: &[u8]) -> Treatment {
    let fixed = |size: usize| Treatment::Forward(Room { fixed: (OUT_HEADER + size) as u32, pages: 0 });
    let pages = |size: u32| Treatment::Forward(Room { fixed: OUT_HEADER as u32, pages: size });
    match opcode {
        opcode::LOOKUP | opcode::SYMLINK | opcode::MKNOD | opcode::MKDIR | opcode::LINK => {
            fixed(size_of::<wire::EntryOut>())
        }
        opcode::GETATTR | opcode::SETATTR => fixed(size_of::<wire::AttrOut>()),
        opcode::STATX => fixed(size_of::<wire::StatxOut>()),
        // A page, less the byte for the NUL that the kernel adds.
        opcode::READLINK => pages(4095),
        opcode::OPEN | opcode::OPENDIR => fixed(size_of::<wire::OpenOut>()),
        opcode::CREATE | opcode::TMPFILE => fixed(size_of::<wire::CreateOut>()),
        opcode::READ | opcode::READDIR | opcode::READDIRPLUS => pages(read_args::<wire::ReadIn>(args).size),
        opcode::WRITE | opcode::COPY_FILE_RANGE => fixed(size_of::<wire::WriteOut>()),
        opcode::COPY_FILE_RANGE_64 | opcode::LSEEK => fixed(size_of::<wire::LseekOut>()),
        opcode::STATFS => fixed(size_of::<wire::StatfsOut>()),
        opcode::GETXATTR | opcode::LISTXATTR => match read_args::<wire::GetxattrIn>(args).size {
            0 => fixed(size_of::<wire::GetxattrOut>()),
            size => fixed(size as usize),
        },
        opcode::GETLK => fixed(size_of::<wire::LkOut>()),
        opcode::BMAP => fixed(size_of::<wire::BmapOut>()),
        opcode::POLL => fixed(size_of::<wire::PollOut>()),
        opcode::IOCTL => Treatment::Forward(Room {
            fixed: (OUT_HEADER + size_of::<wire::IoctlOut>()) as u32,
            pages: read_args::<wire::IoctlIn>(args).out_size,
        }),
        opcode::INIT => fixed(size_of::<wire::InitOut>()),
        opcode::UNLINK
        | opcode::RMDIR
        | opcode::RENAME
        | opcode::RENAME2
        | opcode::RELEASE
        | opcode::RELEASEDIR
        | opcode::FLUSH
        | opcode::FSYNC
        | opcode::FSYNCDIR
        | opcode::SYNCFS
        | opcode::SETXATTR
        | opcode::REMOVEXATTR
        | opcode::SETLK
        | opcode::SETLKW
        | opcode::ACCESS
        | opcode::FALLOCATE
        | opcode::SETUPMAPPING
        | opcode::REMOVEMAPPING
        | opcode::DESTROY => fixed(0),
        opcode::FORGET | opcode::BATCH_FORGET => Treatment::Forget,
        opcode::INTERRUPT => Treatment::Drop,
        _ => Treatment::Unknown,
    }
}

/// The fixed part of a request. The kernel never sends less.
fn read_args<T: FromBytes>(args: &[u8]) -> T {
    T::read_from_prefix(args).unwrap_or_else(|_| panic!("the kernel sent {} bytes", args.len())).0
}

#[cfg(test)]
mod tests {
    use super::{Room, Treatment, treatment};
    use crate::fuse::wire::{self, opcode};
    use zerocopy::IntoBytes;

    #[test]
    fn rooms_follow_the_requests() {
        let read = wire::ReadIn { size: 8192, ..Default::default() };
        let room = Room { fixed: 16, pages: 8192 };
        assert_eq!(treatment(opcode::READ, read.as_bytes()), Treatment::Forward(room));
        let get = wire::GetxattrIn { size: 300, padding: 0 };
        let room = Room { fixed: 316, pages: 0 };
        assert_eq!(treatment(opcode::GETXATTR, get.as_bytes()), Treatment::Forward(room));
        assert_eq!(treatment(opcode::INTERRUPT, &[0; 8]), Treatment::Drop);
        assert_eq!(treatment(opcode::FORGET, &[0; 8]), Treatment::Forget);
        assert_eq!(treatment(1000, &[]), Treatment::Unknown);
    }
}
