//! Files mapped into memory, whose readers outlive that another process shortens them.
//!
//! The system answers a read beyond a file's end, or from a disk that fails, with the signal SIGBUS, which ends the
//! process without a word. Here a handler puts zeros in place of what cannot be read and marks the mapping. A reader
//! asks after it has read ([`Mapped::check`]) and gets an error that names the file; it must not panic on zeros before.

use crate::error::{During, Error, Result};
use memmap2::Mmap;
use std::fs::{File, Metadata};
use std::ops::Deref;
use std::path::{Path, PathBuf};

/// A file's bytes, mapped read-only.
#[derive(Debug)]
pub struct Mapped {
    map: Mmap,
    path: PathBuf,
    /// Device and inode: another file may take the name later, which does not touch this mapping.
    id: Option<(u64, u64)>,
    #[cfg(target_os = "linux")]
    watched: &'static fault::Watched,
}

impl Mapped {
    /// Maps an open file of this name.
    ///
    /// # Errors
    /// What the system answers.
    pub fn new(file: &File, path: &Path) -> Result<Self> {
        let id = identity(&file.metadata().during("cannot read", path)?);
        // SAFETY: the map is read-only. Files that are mapped are written under another name and renamed, never in place;
        // where another process shortens one nevertheless, its bytes become zeros and `check` says so.
        let map = unsafe { Mmap::map(file) }.during("cannot map", path)?;
        Ok(Self {
            #[cfg(target_os = "linux")]
            watched: fault::watch(&map),
            map,
            path: path.to_owned(),
            id,
        })
    }

    /// Whether all that was read so far was there.
    ///
    /// # Errors
    /// Something was not, and zeros were read in its place.
    pub fn check(&self) -> Result<()> {
        #[cfg(target_os = "linux")]
        if self.watched.is_torn() {
            self.check_length()?;
            return Err(
                self.lost("cannot be read any more: it was cut short while in use, or its disk fails".into())
            );
        }
        Ok(())
    }

    /// As [`Self::check`], and compares the file's length with that of the mapping: what is cut off within the last page
    /// is read as zeros without a sign. Asks the file system.
    ///
    /// # Errors
    /// The file is shorter than it was.
    pub fn check_file(&self) -> Result<()> {
        self.check_length()?;
        self.check()
    }

    fn check_length(&self) -> Result<()> {
        match std::fs::metadata(&self.path) {
            Ok(now) if identity(&now) == self.id && now.len() < self.map.len() as u64 => {
                let (was, is) = (self.map.len(), now.len());
                Err(self.lost(format!("was cut short from {was} to {is} bytes while it was in use")))
            }
            // Removed or replaced: the mapping keeps the old file.
            _ => Ok(()),
        }
    }

    fn lost(&self, what: String) -> Error {
        let remedy = "restore the file and start again; a run goes on from its last checkpoint with --resume";
        Error::file(&self.path, format!("{what}; {remedy}"))
    }

    /// Asks the system to read ahead: page by page, a disk far away would answer once for each few pages.
    pub fn read_ahead(&self) {
        #[cfg(unix)]
        let _ = self.map.advise(memmap2::Advice::WillNeed);
    }
}

impl Deref for Mapped {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.map
    }
}

#[cfg(target_os = "linux")]
impl Drop for Mapped {
    fn drop(&mut self) {
        self.watched.forget();
    }
}

#[cfg(unix)]
fn identity(metadata: &Metadata) -> Option<(u64, u64)> {
    use std::os::unix::fs::MetadataExt;
    Some((metadata.dev(), metadata.ino()))
}

#[cfg(not(unix))]
fn identity(_: &Metadata) -> Option<(u64, u64)> {
    None
}

/// The handler of SIGBUS and the list of mappings that it knows.
#[cfg(target_os = "linux")]
mod fault {
    use std::mem::{MaybeUninit, zeroed};
    use std::ptr::{null, null_mut};
    use std::sync::Once;
    use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicUsize, Ordering::SeqCst};

    /// A mapping. An entry is never freed or used again, so that the handler can walk the list at any moment.
    #[derive(Debug)]
    pub struct Watched {
        start: usize,
        /// Of the bytes from `start` on; 0 once they are unmapped.
        len: AtomicUsize,
        torn: AtomicBool,
        next: *const Watched,
    }

    // SAFETY: `next` is written before the entry is shared and points to an entry that is never freed
    unsafe impl Sync for Watched {}
    // SAFETY: as above
    unsafe impl Send for Watched {}

    impl Watched {
        pub fn is_torn(&self) -> bool {
            self.torn.load(SeqCst)
        }

        /// To be called before the bytes are unmapped.
        pub fn forget(&self) {
            self.len.store(0, SeqCst);
        }
    }

    static NEWEST: AtomicPtr<Watched> = AtomicPtr::new(null_mut());
    static PAGE: AtomicUsize = AtomicUsize::new(0);
    /// What handled the signal before: Rust's runtime tells by it that a stack is full.
    static mut BEFORE: MaybeUninit<libc::sigaction> = MaybeUninit::uninit();
    static INSTALLED: Once = Once::new();

    /// Watches over mapped bytes until [`Watched::forget`].
    pub fn watch(bytes: &[u8]) -> &'static Watched {
        INSTALLED.call_once(install);
        let entry = Box::leak(Box::new(Watched {
            start: bytes.as_ptr() as usize,
            len: AtomicUsize::new(bytes.len()),
            torn: AtomicBool::new(false),
            next: null(),
        }));
        let entry: *mut Watched = entry;
        let mut newest = NEWEST.load(SeqCst);
        loop {
            // SAFETY: the entry is not shared before the exchange below succeeds
            unsafe { (*entry).next = newest };
            match NEWEST.compare_exchange(newest, entry, SeqCst, SeqCst) {
                // SAFETY: leaked, and from here on only read
                Ok(_) => return unsafe { &*entry },
                Err(now) => newest = now,
            }
        }
    }

    fn install() {
        // SAFETY: the call takes a constant and no pointer
        let page = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
        PAGE.store(usize::try_from(page).unwrap_or(4096), SeqCst);
        // SAFETY: a `sigaction` of zeros is valid; the handler has the signature that SA_SIGINFO asks for and does only
        // what a handler may; `BEFORE` is written here once, before the handler can run for the first time. Where the
        // system refuses, the signal ends the process as it did.
        unsafe {
            let mut action: libc::sigaction = zeroed();
            action.sa_sigaction = on_fault as *const () as usize;
            action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
            libc::sigemptyset(&mut action.sa_mask);
            let before = &raw mut BEFORE;
            if libc::sigaction(libc::SIGBUS, null(), (*before).as_mut_ptr()) == 0 {
                libc::sigaction(libc::SIGBUS, &action, null_mut());
            }
        }
    }

    /// The mapping that an address lies in, and its end.
    fn find(address: usize) -> Option<(&'static Watched, usize)> {
        let mut entry = NEWEST.load(SeqCst).cast_const();
        while !entry.is_null() {
            // SAFETY: an entry of the list, none of which is ever freed or changed but for its atomics
            let watched = unsafe { &*entry };
            let end = watched.start + watched.len.load(SeqCst);
            if (watched.start..end).contains(&address) {
                return Some((watched, end));
            }
            entry = watched.next;
        }
        None
    }

    /// Marks the mapping and puts zeros from the page at fault to the mapping's end: what follows is gone too.
    extern "C" fn on_fault(signal: i32, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
        // SAFETY: the system hands over a valid siginfo_t; the address is set for SIGBUS
        let (address, code) = unsafe { ((*info).si_addr() as usize, (*info).si_code) };
        if code == libc::BUS_ADRERR
            && let Some((watched, end)) = find(address)
        {
            watched.torn.store(true, SeqCst);
            let page = PAGE.load(SeqCst);
            let from = address / page * page;
            // SAFETY: the pages belong to a mapping of this process that is in use, and stay mapped and readable; mmap is
            // one system call
            let put = unsafe {
                libc::mmap(
                    from as *mut libc::c_void,
                    end.next_multiple_of(page) - from,
                    libc::PROT_READ,
                    libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED,
                    -1,
                    0,
                )
            };
            if put != libc::MAP_FAILED {
                return;
            }
        }
        pass_on(signal, info, context);
    }

    /// What happens to faults that are none of ours.
    fn pass_on(signal: i32, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
        // SAFETY: `BEFORE` was filled by the system before this handler was installed; a handler in it has the signature
        // that its flags say. Without one the default action follows when the fault repeats.
        unsafe {
            let before = (&raw const BEFORE).cast::<libc::sigaction>();
            match (*before).sa_sigaction {
                libc::SIG_DFL | libc::SIG_IGN => {
                    let mut default: libc::sigaction = zeroed();
                    default.sa_sigaction = libc::SIG_DFL;
                    libc::sigaction(signal, &default, null_mut());
                }
                handler if (*before).sa_flags & libc::SA_SIGINFO != 0 => {
                    let handler: extern "C" fn(i32, *mut libc::siginfo_t, *mut libc::c_void) =
                        std::mem::transmute(handler);
                    handler(signal, info, context);
                }
                handler => {
                    let handler: extern "C" fn(i32) = std::mem::transmute(handler);
                    handler(signal);
                }
            }
        }
    }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    fn file(bytes: usize) -> (tempfile::TempDir, PathBuf, Mapped) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.shard");
        std::fs::write(&path, vec![7; bytes]).unwrap();
        let mapped = Mapped::new(&File::open(&path).unwrap(), &path).unwrap();
        (dir, path, mapped)
    }

    fn cut(path: &Path, bytes: u64) {
        File::options().write(true).open(path).unwrap().set_len(bytes).unwrap();
    }

    #[test]
    fn what_is_cut_off_reads_as_zeros_and_is_told() {
        let (_dir, path, mapped) = file(1 << 20);
        assert_eq!(mapped.iter().map(|&b| u64::from(b)).sum::<u64>(), 7 << 20);
        mapped.check_file().unwrap();
        cut(&path, 1 << 18);
        mapped.check().unwrap();
        let sums: Vec<u64> = std::thread::scope(|scope| {
            let sum = || mapped.iter().map(|&b| u64::from(b)).sum();
            let threads: Vec<_> = (0..4).map(|_| scope.spawn(sum)).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        assert_eq!(sums, [7 << 18; 4]);
        let said = mapped.check().unwrap_err().to_string();
        assert!(
            said.contains("a.shard: was cut short from 1048576 to 262144 bytes") && said.contains("--resume")
        );
        // restored: what was read is wrong nevertheless
        std::fs::write(&path, vec![7; 1 << 20]).unwrap();
        let said = mapped.check().unwrap_err().to_string();
        assert!(said.contains("a.shard: cannot be read any more"), "{said}");
    }

    #[test]
    fn a_cut_within_the_last_page_shows_by_the_length() {
        let (_dir, path, mapped) = file(10_000);
        cut(&path, 9_990);
        assert_eq!(mapped[9_995], 0);
        mapped.check().unwrap();
        let said = mapped.check_file().unwrap_err().to_string();
        assert!(said.contains("from 10000 to 9990 bytes"), "{said}");
    }

    #[test]
    fn a_file_that_is_replaced_or_removed_stays_as_it_was() {
        let (dir, path, mapped) = file(10_000);
        std::fs::write(dir.path().join("b"), "short").unwrap();
        std::fs::rename(dir.path().join("b"), &path).unwrap();
        mapped.check_file().unwrap();
        std::fs::remove_file(&path).unwrap();
        mapped.check_file().unwrap();
        assert!(mapped.iter().all(|&b| b == 7));
    }
}
