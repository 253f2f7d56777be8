//! Which program this is.

use std::fs::File;
use std::io::Read;
use std::sync::OnceLock;
use xxhash_rust::xxh3::Xxh3;

/// Version, and hash of the program's file: two programs of one version may still compute differently. Where the system does
/// not let the file be read, the version only.
pub fn program() -> &'static str {
    static PROGRAM: OnceLock<String> = OnceLock::new();
    PROGRAM.get_or_init(|| {
        let version = env!("CARGO_PKG_VERSION");
        match own_file().and_then(hash) {
            Ok(hash) => format!("{version} of build {hash:016x}"),
            Err(_) => version.to_owned(),
        }
    })
}

fn own_file() -> std::io::Result<File> {
    // On Linux the file that runs, even where another one has taken its place since.
    File::open("/proc/self/exe").or_else(|_| File::open(std::env::current_exe()?))
}

fn hash(mut file: File) -> std::io::Result<u64> {
    let (mut hasher, mut piece) = (Xxh3::new(), vec![0; 1 << 20]);
    loop {
        match file.read(&mut piece)? {
            0 => return Ok(hasher.digest()),
            n => hasher.update(&piece[..n]),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_is_its_version_and_its_file() {
        assert!(program().starts_with(concat!(env!("CARGO_PKG_VERSION"), " of build ")), "{}", program());
        let dir = tempfile::tempdir().unwrap();
        let hash_of = |bytes: &[u8]| {
            let path = dir.path().join("program");
            std::fs::write(&path, bytes).unwrap();
            hash(File::open(path).unwrap()).unwrap()
        };
        let bytes = vec![7; (1 << 20) + 1];
        assert_eq!(hash_of(&bytes), xxhash_rust::xxh3::xxh3_64(&bytes));
        assert_ne!(hash_of(&bytes), hash_of(&bytes[1..]));
    }
}
