//! What a kernel does wrong ends the process with a message that names the place; what the environment asks to fail, fails.

use crate::gpu::{Buffer, Stream, arg, try_launch};
use cudarc::driver::{result, sys};
use std::process::Command;

/// Runs a test of this program in a process of its own: its standard error, and whether it passed.
pub fn child(test: &str, environment: &[(&str, &str)]) -> (String, bool) {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", test, "--ignored", "--nocapture"]).envs(environment.iter().copied());
    let output = command.output().unwrap();
    (String::from_utf8_lossy(&output.stderr).into_owned(), output.status.success())
}

fn number(name: &str) -> i32 {
    std::env::var(name).unwrap().parse().unwrap()
}

#[test]
#[ignore = "run by `faults_are_told` in a process of its own"]
fn wrong() {
    let stream = Stream::new();
    let y = Buffer::<f32>::fresh(100);
    let args = [arg(y.at), arg(number("WHAT")), arg(number("N"))];
    try_launch(&stream, "test_wrong", (1, 1, 1), (64, 1, 1), 256, &args).unwrap();
    stream.wait();
}

#[test]
fn faults_are_told() {
    // The message, and a thread that the report must name (an error of many threads is any one's).
    let cases = [
        (0, 100, "0 bytes past the end of the buffer of 400 bytes", "thread (3, 0, 0)"),
        (0, 4000, "past the end of the buffer of 400 bytes", "thread (3, 0, 0)"),
        // The buffer begins 112 bytes before a page's end, so that far below it is the page before.
        (1, 1000, "4004 bytes before the buffer of 400 bytes", "thread (3, 0, 0)"),
        (2, 0, "in which its own lane", ""),
        (3, 0, "deadlock: 0 of 64 threads have left", "waits at __syncwarp(), lanes ffffffff"),
        (4, 0, "is not aligned to 16 bytes", "base.cuh"),
        (5, 3, "is outside of 'float [64]'", "kernels.cu"),
        (6, 0, "a write 0 bytes past the end of the shared array `tile`", "block (0, 0, 0)"),
        (7, 0, "assertion failed: t != 5", "thread (5, 0, 0)"),
        (8, 0, "__trap()", "thread (9, 0, 0)"),
        (9, 64, "bad access", "thread (0, 0, 0)"),
        (10, 8, "an integer division by zero", ""),
        (11, 0, "deadlock", "a named barrier"),
        (12, 64, "bad access at 0x40", "test_wrong"),
        (13, 0, "in which its own lane 0 is not", "thread (0, 0, 0)"),
    ];
    for (what, n, message, place) in cases {
        let (text, passed) = child("faults::wrong", &[("WHAT", &what.to_string()), ("N", &n.to_string())]);
        assert!(!passed, "case {what}");
        for part in ["emulator: kernel test_wrong, block (0, 0, 0)", message, place] {
            assert!(text.contains(part), "case {what}: {part:?} is not in:\n{text}");
        }
    }
    let (text, passed) = child("faults::wrong", &[("WHAT", "-1"), ("N", "0")]);
    assert!(passed, "with nothing wrong:\n{text}");
}

#[test]
#[ignore = "run by `a_seed_gives_the_same_order_again` in a process of its own"]
fn print_order() {
    let stream = Stream::new();
    let order = Buffer::from(&[0i32; 256]);
    try_launch(&stream, "test_order", (1, 1, 1), (256, 1, 1), 0, &[arg(order.at)]).unwrap();
    stream.wait();
    eprintln!("{:?}", order.read());
}

#[test]
fn a_seed_gives_the_same_order_again() {
    let run = |seed| {
        let (text, passed) = child("faults::print_order", &[("EMULATOR_SEED", seed)]);
        assert!(passed);
        text.lines().find(|l| l.starts_with('[')).unwrap().to_owned()
    };
    assert_eq!(run("7"), run("7"));
    assert_ne!(run("7"), run("8"));
}

#[test]
#[ignore = "run by `the_environment_describes_the_device` in a process of its own"]
fn describe() {
    emulator::load();
    if let Err(error) = result::init() {
        eprintln!("init: {:?}", error.0);
        return;
    }
    let (mut version, mut bytes) = (0, 0);
    // SAFETY: the pointers are valid for each call; the device exists.
    unsafe {
        sys::cuDriverGetVersion(&mut version).result().unwrap();
        let device = result::device::get(result::device::get_count().unwrap() - 1).unwrap();
        let attribute = |a| result::device::get_attribute(device, a).unwrap();
        let major = attribute(sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR);
        let minor = attribute(sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR);
        let shared =
            attribute(sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN);
        result::ctx::set_current(result::primary_ctx::retain(device).unwrap()).unwrap();
        let mut out_of_memory = false;
        while result::malloc_sync(100 << 20)
            .map_err(|e| out_of_memory = e.0 == sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY)
            .is_ok()
        {
            bytes += 100;
        }
        eprintln!(
            "version {version} device {device} sm {major}{minor} shared {shared} allocated {bytes} MiB, out of memory {out_of_memory}"
        );
    }
}

#[test]
fn the_environment_describes_the_device() {
    let cases: [(&[(&str, &str)], &str); 5] = [
        (&[], "version 13000 device 0 sm 90 shared 232448 allocated 8100 MiB, out of memory true"),
        (
            &[
                ("EMULATOR_MEMORY", "524288000"),
                ("EMULATOR_DRIVER", "12080"),
                ("EMULATOR_ARCH", "80"),
                ("EMULATOR_DEVICES", "3"),
            ],
            "version 12080 device 2 sm 80 shared 166912 allocated 500 MiB, out of memory true",
        ),
        (&[("EMULATOR_DEVICES", "0")], "init: CUDA_ERROR_NO_DEVICE"),
        (&[("EMULATOR_FAIL", "cuMemAlloc_v2:3")], "allocated 200 MiB, out of memory true"),
        (&[("EMULATOR_FAIL", "cuCtxSynchronize:1,cuInit:1:803")], "init: CUDA_ERROR_SYSTEM_DRIVER_MISMATCH"),
    ];
    for (environment, expected) in cases {
        let (text, passed) = child("faults::describe", environment);
        assert!(passed && text.contains(expected), "{environment:?}: {expected:?} is not in:\n{text}");
    }
}

#[test]
#[ignore = "run by `freed_memory_is_told` in a process of its own"]
fn freed() {
    let (stream, x) = (Stream::new(), Buffer::from(&[1f32; 64]));
    let y = Buffer::from(&[1f32; 64]);
    let args = [arg(y.at), arg(x.at), arg(1f32), arg(64i32)];
    // Freed while work is queued: the memory stays until that is done, as with the driver's wait.
    try_launch(&stream, "test_axpy", (1, 1, 1), (64, 1, 1), 0, &args).unwrap();
    drop(y);
    stream.wait();
    eprintln!("first done");
    try_launch(&stream, "test_axpy", (1, 1, 1), (64, 1, 1), 0, &args).unwrap();
    stream.wait();
}

#[test]
fn freed_memory_is_told() {
    let (text, passed) = child("faults::freed", &[]);
    assert!(!passed && text.contains("first done"), "{text}");
    assert!(text.contains("kernel test_axpy") && text.contains("of the freed buffer of 256 bytes"), "{text}");
}

#[test]
#[ignore = "run by `the_linker_finds_the_libraries` in a process of its own"]
fn found_by_name() {
    // SAFETY: asks whether the library can be opened.
    assert!(unsafe { sys::is_culib_present() });
    result::init().unwrap();
    eprintln!("{}", result::device::get_name(result::device::get(0).unwrap()).unwrap());
}

#[test]
fn the_linker_finds_the_libraries() {
    let (text, passed) = child("faults::found_by_name", &[("LD_LIBRARY_PATH", emulator::LIBRARIES)]);
    assert!(passed && text.contains("Emulator sm_90"), "{text}");
}
