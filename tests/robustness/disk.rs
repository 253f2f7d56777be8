//! Folders that cannot be written to and disks that are full.

use super::{Result, TRAIN, Workplace, message, names, skipped, undisturbed};
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::process::{Command, Output};

#[test]
fn a_full_disk_under_a_log_is_named() {
    if !std::path::Path::new("/dev/full").exists() {
        return skipped("no /dev/full");
    }
    let (place, expected) = undisturbed();
    for log in ["metrics.jsonl", "mllog.txt"] {
        fs::create_dir(place.path("full")).unwrap();
        symlink("/dev/full", place.path("full").join(log)).unwrap();
        let said = message(place.line(&format!("{TRAIN} --run full")));
        assert!(said.starts_with(&format!("full/{log}: cannot write")), "{said}");
        assert!(said.contains("free some space"), "{said}");
        fs::remove_file(place.path("full").join(log)).unwrap();
        place.line(&format!("{TRAIN} --run full --resume")).done();
        Result::of(&place.path("full")).assert_equal(&expected, log);
        fs::remove_dir_all(place.path("full")).unwrap();
    }
}

/// A limit on the size of files meets a checkpoint's weights first.
#[test]
fn a_limit_on_file_sizes_is_named_and_loses_nothing() {
    let (place, expected) = undisturbed();
    // in blocks of 512 bytes or of 1024, as the shell likes
    let script = format!("ulimit -f 30; exec {} {TRAIN} --run limited", env!("CARGO_BIN_EXE_launcher"));
    let output = Command::new("sh").args(["-c", &script]).current_dir(place.path("")).output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    let last = said.lines().last().unwrap();
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(last.starts_with("error: limited/checkpoints/.tmp-step-00000004/"), "{said}");
    assert!(last.contains("File too large") && last.contains("ulimit -f"), "{said}");
    assert_eq!(names(&place.path("limited/checkpoints")), Vec::<String>::new());
    place.line(&format!("{TRAIN} --run limited --resume")).done();
    Result::of(&place.path("limited")).assert_equal(&expected, "limited");
}

/// Runs a script in a mount namespace of its own; none where the system does not allow that.
fn with_mounts(place: &Workplace, script: &str) -> Option<Output> {
    let launcher = env!("CARGO_BIN_EXE_launcher");
    let script = format!("mount -t tmpfs -o size=112k none disk || exit 77\nlauncher={launcher}\n{script}");
    let ran = Command::new("unshare").args(["-rm", "sh", "-c", &script]).current_dir(place.path("")).output();
    match ran {
        Ok(output) if ![Some(1), Some(77)].contains(&output.status.code()) => Some(output),
        _ => {
            skipped("no mount namespace here: full and read-only file systems");
            None
        }
    }
}

/// A file system on which the second checkpoint has no room beside the first.
#[test]
fn a_run_on_a_full_file_system_keeps_its_checkpoint_and_goes_on_when_there_is_space() {
    let (place, expected) = undisturbed();
    fs::create_dir(place.path("disk")).unwrap();
    let script = format!(
        "$launcher {TRAIN} --run disk/run 2> full.txt; echo $? > full.code
        ls -A disk/run/checkpoints > left.txt
        $launcher inspect disk/run/checkpoints/step-00000004 > inspect.txt 2>&1; echo $? > inspect.code
        mount -o remount,ro disk
        $launcher {TRAIN} --run disk/run --resume 2> readonly.txt; echo $? > readonly.code
        mount -o remount,rw,size=4m disk
        $launcher {TRAIN} --run disk/run --resume 2> resumed.txt; echo $? > resumed.code
        cp -r disk/run finished; exit 0"
    );
    let Some(output) = with_mounts(&place, &script) else { return };
    assert!(output.status.success(), "{output:?}");
    let read = |name: &str| fs::read_to_string(place.path(name)).unwrap().trim().to_owned();
    let code = |name: &str| (read(&format!("{name}.code")), read(&format!("{name}.txt")));

    let (full, said) = code("full");
    let last = said.lines().last().unwrap();
    assert_eq!(full, "1", "{said}");
    assert_eq!(said.matches("error:").count(), 1, "{said}");
    assert!(last.starts_with("error: disk/run/") && last.contains("No space left"), "{said}");
    assert!(last.contains("free some space"), "{said}");
    assert_eq!(read("left.txt"), "step-00000004", "{said}");
    assert_eq!(code("inspect").0, "0", "{}", code("inspect").1);

    let (readonly, said) = code("readonly");
    assert_eq!(readonly, "1", "{said}");
    assert_eq!(said.lines().count(), 1, "{said}");
    assert!(said.contains("disk/run") && said.contains("Read-only file system"), "{said}");
    assert!(said.contains("choose a folder that you may write to"), "{said}");

    let (resumed, said) = code("resumed");
    assert_eq!(resumed, "0", "{said}");
    assert!(said.contains("resumed from disk/run/checkpoints/step-00000004"), "{said}");
    Result::of(&place.path("finished")).assert_equal(&expected, "resumed with space");
}

#[test]
fn a_folder_below_a_file_or_without_permission_is_named() {
    let (place, _) = undisturbed();
    let below = |line: &str| {
        let said = message(place.line(line));
        assert!(said.starts_with("text.txt") && said.contains("choose another"), "{said}");
    };
    below(&format!("{TRAIN} --run text.txt/run"));
    below(&format!("{TRAIN} --run new --data text.txt/shards"));
    below("prepare --input text.txt --vocab vocab.txt --out text.txt/o");

    let locked = place.path("locked");
    fs::create_dir(&locked).unwrap();
    fs::set_permissions(&locked, fs::Permissions::from_mode(0o555)).unwrap();
    // root may write nevertheless, but not what is immutable
    let immutable = |flag: &str| Command::new("chattr").arg(flag).arg(&locked).output();
    let writable = || fs::create_dir(locked.join("probe")).is_ok();
    if writable() {
        fs::remove_dir(locked.join("probe")).unwrap();
        let _ = immutable("+i");
        if writable() {
            return skipped("nothing makes a folder read-only here");
        }
    }
    let said = [
        place.line(&format!("{TRAIN} --run locked/run")),
        place.line(&format!("{TRAIN} --run new --data locked/shards")),
        place.line("prepare --input text.txt --vocab vocab.txt --out locked/o"),
    ];
    let _ = immutable("-i");
    fs::set_permissions(&locked, fs::Permissions::from_mode(0o755)).unwrap();
    for said in said.map(message) {
        assert!(said.starts_with("locked/") && said.contains("may write to"), "{said}");
    }
}
