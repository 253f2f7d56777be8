//! What the system lets this process have: memory and threads, by its control groups (cgroups(7), versions 1 and 2) and by
//! `ulimit` (getrlimit(2)).
//!
//! A group's limit holds for all groups below it, so the smallest on the way up counts. In a container the way ends at what
//! is mounted there. All is read below a folder that stands for the file system's root.

use std::fmt::Display;
use std::fs::read_to_string as read;
use std::path::{Path, PathBuf};

/// A limit and who sets it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limit {
    /// Bytes, or processes and threads.
    pub value: u64,
    /// The file or the command that a user would change.
    pub source: String,
}

/// The smallest limit on this process's memory, in bytes; none where there is none. Of `ulimit -v` and `ulimit -d`, what
/// this process has not taken yet.
pub fn memory(root: &Path) -> Option<Limit> {
    let mut limits = Vec::new();
    for group in groups(root, "memory") {
        // memory.high does not end a process, but lets it stand still
        let files = ["memory.max", "memory.high", "memory.limit_in_bytes"].map(|file| group.join(file));
        limits.extend(files.iter().filter_map(|file| of_file(file)));
        let file = group.join("memory.stat");
        let found = read(&file).ok().and_then(|text| number(&text, "hierarchical_memory_limit"));
        limits.extend(found.map(|value| Limit { value, source: file.display().to_string() }));
    }
    for (name, used, source) in
        [("Max address space", "VmSize:", "ulimit -v"), ("Max data size", "VmData:", "ulimit -d")]
    {
        let used = read(root.join("proc/self/status")).ok().and_then(|text| number(&text, used));
        let left = rlimit(root, name).map(|limit| limit.saturating_sub(1024 * used.unwrap_or(0)));
        limits.extend(left.map(|value| Limit { value, source: source.to_owned() }));
    }
    limits.into_iter().min_by_key(|limit| limit.value)
}

/// The smallest limit on processes and threads, those of other processes included; none where there is none.
pub fn threads(root: &Path) -> Option<Limit> {
    let files = groups(root, "pids").into_iter().map(|group| group.join("pids.max"));
    let mut limits: Vec<Limit> = files.filter_map(|file| of_file(&file)).collect();
    let of_user = rlimit(root, "Max processes");
    limits.extend(of_user.map(|value| Limit { value, source: "ulimit -u".to_owned() }));
    limits.into_iter().min_by_key(|limit| limit.value)
}

/// Why a thread or process could not be started, and what to do: `what` is it, `error` the system's answer.
pub fn refused(what: &str, error: &dyn Display) -> String {
    let why = match threads(Path::new("/")) {
        Some(Limit { value, source }) => format!("{source} allows {value} processes and threads"),
        None => "the system has no room for another thread".to_owned(),
    };
    let stacks = match rlimit(Path::new("/"), "Max address space") {
        Some(bytes) => format!(", ulimit -v {} bytes for all their stacks", bytes),
        None => String::new(),
    };
    format!(
        "cannot start {what}: {error}; {why}{stacks}: ask for fewer threads (train.threads, or --threads) or processes, or \
         raise the limit"
    )
}

/// The folders of this process's control group for a controller, its own first, then those above it.
fn groups(root: &Path, controller: &str) -> Vec<PathBuf> {
    let (Ok(groups), Ok(mounts)) =
        (read(root.join("proc/self/cgroup")), read(root.join("proc/self/mountinfo")))
    else {
        return Vec::new();
    };
    mounts
        .lines()
        .filter_map(Mount::parse)
        .flat_map(|mount| mount.folders(root, &groups, controller))
        .collect()
}

/// A line of /proc/self/mountinfo, as far as it is of use here (proc_pid_mountinfo(5)).
struct Mount<'a> {
    /// The folder of the file system that is mounted.
    root: String,
    point: String,
    kind: &'a str,
    options: &'a str,
}

impl<'a> Mount<'a> {
    fn parse(line: &'a str) -> Option<Self> {
        let (own, of_kind) = line.split_once(" - ")?;
        let mut own = own.split(' ').skip(3);
        let mut of_kind = of_kind.split(' ');
        // Spaces and a few others are written as octal numbers.
        let mut path = || Some(own.next()?.replace("\\040", " "));
        Some(Self { root: path()?, point: path()?, kind: of_kind.next()?, options: of_kind.nth(1)? })
    }

    /// The group's folders in this mount, if it is one of the controller's. `groups` is /proc/self/cgroup.
    fn folders(&self, root: &Path, groups: &str, controller: &str) -> Vec<PathBuf> {
        let has = |list: &str, name: &str| list.split(',').any(|item| item == name);
        let lines = groups.lines().map(|line| line.splitn(3, ':').collect::<Vec<_>>());
        let is_own = |line: &&[&str]| match self.kind {
            "cgroup" => has(self.options, controller) && has(line[1], controller),
            "cgroup2" => line[1].is_empty(),
            _ => false,
        };
        let lines: Vec<_> = lines.filter(|line| line.len() == 3).collect();
        let Some(line) = lines.iter().map(Vec::as_slice).find(is_own) else { return Vec::new() };
        // A path outside of what is mounted, as with `..`, leaves what can be seen: the mount itself.
        let below = Path::new(line[2]).strip_prefix(&self.root).unwrap_or(Path::new(""));
        let below = if line[2].split('/').any(|part| part == "..") { Path::new("") } else { below };
        let mount = root.join(self.point.trim_start_matches('/'));
        below.ancestors().map(|group| mount.join(group)).collect()
    }
}

/// A file with one number in it; `max` is no limit.
fn of_file(path: &Path) -> Option<Limit> {
    let value = read(path).ok()?.trim().parse().ok()?;
    Some(Limit { value, source: path.display().to_string() })
}

/// The number behind a name at the beginning of a line.
fn number(text: &str, name: &str) -> Option<u64> {
    let rest = text.lines().find_map(|line| line.strip_prefix(name))?;
    rest.split_whitespace().next()?.parse().ok()
}

/// A soft limit of /proc/self/limits; none where it is unlimited.
fn rlimit(root: &Path, name: &str) -> Option<u64> {
    number(&read(root.join("proc/self/limits")).ok()?, name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    const V2: &str = "30 23 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n";
    const V1: &str = "32 31 0:29 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu,cpuacct\n\
                      35 31 0:32 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n\
                      40 31 0:37 / /sys/fs/cgroup/pids rw - cgroup cgroup rw,pids\n";

    /// A file system of these files.
    fn root(files: &[(&str, &str)]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for (name, text) in files {
            let path = dir.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        dir
    }

    #[track_caller]
    fn check(found: Option<Limit>, value: u64, source: &str) {
        let found = found.unwrap();
        assert_eq!(found.value, value);
        assert!(found.source.ends_with(source), "{found:?}");
    }

    #[test]
    fn the_smallest_limit_on_the_way_up_counts() {
        let top = "sys/fs/cgroup/";
        for (a, b, c, smallest) in
            [("300", "200", "max", "a.slice/b/memory.max"), ("100", "200", "900", "a.slice/memory.max")]
        {
            let dir = root(&[
                ("proc/self/cgroup", "0::/a.slice/b/c.scope\n"),
                ("proc/self/mountinfo", V2),
                (&format!("{top}a.slice/memory.max"), a),
                (&format!("{top}a.slice/b/memory.max"), b),
                (&format!("{top}a.slice/b/c.scope/memory.max"), c),
                (&format!("{top}other/memory.max"), "1"),
            ]);
            check(memory(dir.path()), a.parse::<u64>().unwrap().min(200), smallest);
        }
    }

    #[test]
    fn version_1_and_both_at_once() {
        let own = "sys/fs/cgroup/memory/docker/ab";
        let mut files = vec![
            (
                "proc/self/cgroup",
                "4:memory:/docker/ab\n8:pids:/docker/ab\n2:cpu,cpuacct:/docker\n0::/\n".to_owned(),
            ),
            ("proc/self/mountinfo", V1.to_owned() + &V2.replace("cgroup rw,nosuid", "cgroup/unified rw")),
            ("sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n".to_owned()),
            ("sys/fs/cgroup/memory/docker/memory.limit_in_bytes", "5000\n".to_owned()),
            ("sys/fs/cgroup/pids/docker/pids.max", "20\n".to_owned()),
            ("sys/fs/cgroup/pids/docker/ab/pids.max", "max\n".to_owned()),
        ];
        let made =
            |files: &[(&str, String)]| root(&files.iter().map(|(n, t)| (*n, t.as_str())).collect::<Vec<_>>());
        let dir = made(&files);
        check(memory(dir.path()), 5000, "docker/memory.limit_in_bytes");
        check(threads(dir.path()), 20, "docker/pids.max");
        // the kernel itself knows of a group that is not mounted here
        let stat = format!("{own}/memory.stat");
        files.push((&stat, "cache 7\nhierarchical_memory_limit 4000\ntotal_cache 7\n".to_owned()));
        check(memory(made(&files).path()), 4000, "ab/memory.stat");
    }

    #[test]
    fn a_container_sees_what_is_mounted_there() {
        // a namespace of its own; the host's path and mount; a path outside of the namespace
        for (group, mounted) in [
            ("/", "/"),
            ("/docker/ab", "/docker/ab"),
            ("/../cd", "/"),
            ("/docker/ab", "/../.."),
            ("/elsewhere", "/docker"),
        ] {
            let dir = root(&[
                ("proc/self/cgroup", &format!("0::{group}\n")),
                ("proc/self/mountinfo", &V2.replace("0:26 / ", &format!("0:26 {mounted} "))),
                ("sys/fs/cgroup/memory.max", "7000"),
                ("sys/fs/cgroup/cd/memory.max", "1"),
            ]);
            check(memory(dir.path()), 7000, "cgroup/memory.max");
        }
        // a group below the container's own
        let dir = root(&[
            ("proc/self/cgroup", "0::/docker/ab/init\n"),
            ("proc/self/mountinfo", &V2.replace("0:26 / ", "0:26 /docker/ab ")),
            ("sys/fs/cgroup/memory.max", "7000"),
            ("sys/fs/cgroup/init/memory.max", "6000"),
            ("sys/fs/cgroup/init/memory.high", "5000"),
        ]);
        check(memory(dir.path()), 5000, "init/memory.high");
    }

    #[test]
    fn limits_of_the_shell_count_what_is_taken() {
        let limits = "Limit                     Soft Limit           Hard Limit           Units     \n\
                      Max data size             unlimited            unlimited            bytes     \n\
                      Max processes             64                   96365                processes \n\
                      Max address space         2048000              unlimited            bytes     \n";
        let dir =
            root(&[("proc/self/limits", limits), ("proc/self/status", "Name:\tx\nVmSize:\t    1500 kB\n")]);
        check(memory(dir.path()), 2048000 - 1500 * 1024, "ulimit -v");
        check(threads(dir.path()), 64, "ulimit -u");
        let none = root(&[(
            "proc/self/limits",
            &limits.replace("2048000", "unlimited").replace("64 ", "unlimited "),
        )]);
        assert_eq!((memory(none.path()), threads(none.path())), (None, None));
        assert_eq!(memory(&none.path().join("nothing")), None);
    }

    #[test]
    fn a_refused_thread_is_explained() {
        let said = refused("the loader's thread", &"no more");
        assert!(said.starts_with("cannot start the loader's thread: no more; "), "{said}");
        assert!(said.contains("train.threads"), "{said}");
    }
}
