//! Live migration: what the worker knows of a guest, as a stream of bytes that another daemon goes on from.
//!
//! The front end turns the dirty log on when a migration begins, and that starts the *preparation*: while the guest
//! still runs, `find` looks where its inodes lie and `places` follows those that move. Then the front end stops
//! the queues and asks for the device's state: `capture` makes it, `format` writes it. At the destination,
//! `restore` finds everything again, by paths (`walk`) or by file handles (`handles`).
//!
//! State goes through a pipe of the front end, on a thread of its own: the vhost-user thread must be free to
//! answer. The thread is made when it is needed; the system-call filter is inherited.

mod capture;
mod find;
pub mod format;
mod handles;
pub mod places;
mod restore;
mod walk;

use std::fs::File;
use std::io::{self, BufWriter};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Instant;

use parking_lot::Mutex;
use thiserror::Error;
use vhost::vhost_user::message::{VhostTransferStateDirection, VhostTransferStatePhase};

use super::fs::FileSystem;
use crate::config::{MigrationConfig, MigrationMode};
use capture::CaptureError;
use restore::RestoreError;

/// Bytes written to the front end's pipe at once.
const CHUNK: usize = 1 << 18;

/// Why a state was not transferred.
#[derive(Debug, Error)]
pub enum TransferError {
    /// At the source.
    #[error("the guest's state cannot be saved: {0}")]
    Save(#[from] CaptureError),
    /// At the destination.
    #[error("the guest's state cannot be loaded: {0}")]
    Load(#[from] RestoreError),
    /// Only the phase in which the device is stopped exists.
    #[error(
        "the front end wants to transfer state in phase {0:?}; only a stopped device has state to transfer"
    )]
    Phase(VhostTransferStatePhase),
    /// One at a time.
    #[error("the front end begins to transfer state before it has asked for the result of the last transfer")]
    Busy,
    /// The front end asks for the result of nothing.
    #[error("the front end asks for the result of a transfer of state that it has not begun")]
    Nothing,
    /// The thread can't be made, or broke down.
    #[error("the thread that transfers the state {0}")]
    Thread(String),
}

impl From<TransferError> for io::Error {
    fn from(error: TransferError) -> Self {
        io::Error::other(error.to_string())
    }
}

/// The migration side of one device.
pub struct Migration {
    fs: Arc<FileSystem>,
    config: MigrationConfig,
    preparation: Mutex<Option<Preparation>>,
    transfer: Mutex<Option<JoinHandle<Result<(), TransferError>>>>,
}

/// A preparation that is under way, or done.
struct Preparation {
    cancelled: Arc<AtomicBool>,
    thread: JoinHandle<()>,
}

impl Preparation {
    /// Ends soon: what is known by then is kept.
    fn finish(self) {
        self.cancelled.store(true, Ordering::Relaxed);
        if self.thread.join().is_err() {
            log::error!("migration: the preparation broke down");
        }
    }
}

impl Migration {
    /// Of a device on this file system.
    pub fn new(fs: Arc<FileSystem>, config: MigrationConfig) -> Self {
        Migration { fs, config, preparation: Mutex::new(None), transfer: Mutex::new(None) }
    }

    /// The dirty log was turned on or off: a migration begins, or it is cancelled.
    pub fn logging(&self, on: bool) {
        let mut preparation = self.preparation.lock();
        match (on, preparation.take()) {
            (true, None) => *preparation = self.prepare(),
            (true, under_way) => *preparation = under_way,
            (false, None) => {}
            (false, Some(under_way)) => {
                under_way.finish();
                self.fs.tracker.stop();
            }
        }
    }

    /// Starts the preparation. Without one (nothing to prepare, or no thread to be had) everything is done at the
    /// end.
    fn prepare(&self) -> Option<Preparation> {
        if self.config.mode != MigrationMode::FindPaths {
            return None;
        }
        self.fs.tracker.start();
        let (fs, cancelled) = (Arc::clone(&self.fs), Arc::new(AtomicBool::new(false)));
        let flag = Arc::clone(&cancelled);
        let prepare = move || {
            let begin = Instant::now();
            match find::find_places(&fs, &flag) {
                Ok(()) => log::info!("migration: prepared in {} ms", begin.elapsed().as_millis()),
                Err(e) => log::warn!("migration: cannot prepare: {e}"),
            }
        };
        match thread::Builder::new().name("prepare".to_owned()).spawn(prepare) {
            Ok(thread) => Some(Preparation { cancelled, thread }),
            Err(e) => {
                log::warn!("migration: no thread to prepare it on: {e}");
                self.fs.tracker.stop();
                None
            }
        }
    }

    /// SET_DEVICE_STATE_FD: begins to transfer the state.
    ///
    /// # Errors
    /// [`TransferError`], when it can't begin.
    pub fn begin(
        &self,
        direction: VhostTransferStateDirection,
        phase: VhostTransferStatePhase,
        file: File,
    ) -> Result<(), TransferError> {
        if phase != VhostTransferStatePhase::STOPPED {
            return Err(TransferError::Phase(phase));
        }
        let mut transfer = self.transfer.lock();
        if transfer.is_some() {
            return Err(TransferError::Busy);
        }
        let (fs, config) = (Arc::clone(&self.fs), self.config.clone());
        let preparation = self.preparation.lock().take();
        let run = move || match direction {
            VhostTransferStateDirection::SAVE => save(&fs, &config, preparation, file),
            VhostTransferStateDirection::LOAD => load(&fs, &config, preparation, file),
        };
        let thread = thread::Builder::new().name("migration".to_owned()).spawn(run);
        *transfer = Some(thread.map_err(|e| TransferError::Thread(format!("cannot be made: {e}")))?);
        Ok(())
    }

    /// CHECK_DEVICE_STATE: the result of the transfer, once it has ended.
    ///
    /// # Errors
    /// [`TransferError`]
    pub fn check(&self) -> Result<(), TransferError> {
        let thread = self.transfer.lock().take().ok_or(TransferError::Nothing)?;
        thread.join().map_err(|_| TransferError::Thread("broke down".to_owned()))?
    }
}

fn save(
    fs: &FileSystem,
    config: &MigrationConfig,
    preparation: Option<Preparation>,
    file: File,
) -> Result<(), TransferError> {
    let begin = Instant::now();
    if let Some(preparation) = preparation {
        preparation.finish();
    }
    let state = capture::capture(fs, config);
    // If the migration fails after all, the next one begins with a new preparation.
    fs.tracker.stop();
    let state = state?;
    let captured = begin.elapsed();
    let (inodes, handles) = (state.inodes.len(), state.handles.len());
    if fs.lock_owners() > 0 {
        log::warn!(
            "migration: locks on the host (--locks) are not in the stream: {} owners of byte-range locks lose theirs when \
             this daemon ends",
            fs.lock_owners()
        );
    }
    format::write(&state, BufWriter::with_capacity(CHUNK, file)).map_err(CaptureError::Write)?;
    log::info!(
        "migration: saved {inodes} inodes and {handles} handles in {} ms, of which {} ms to write them",
        begin.elapsed().as_millis(),
        (begin.elapsed() - captured).as_millis()
    );
    Ok(())
}

fn load(
    fs: &FileSystem,
    config: &MigrationConfig,
    preparation: Option<Preparation>,
    file: File,
) -> Result<(), TransferError> {
    if let Some(preparation) = preparation {
        preparation.finish();
        fs.tracker.stop();
    }
    let state = format::read(file).map_err(RestoreError::Decode)?;
    let begin = Instant::now();
    let restored = restore::restore(fs, config.on_error, &state)?;
    log::info!(
        "migration: loaded {} inodes and {} handles in {} ms",
        restored.inodes,
        restored.handles,
        begin.elapsed().as_millis()
    );
    if restored.lost > 0 {
        log::warn!("migration: {} inodes and handles are lost and answer errors", restored.lost);
    }
    Ok(())
}
