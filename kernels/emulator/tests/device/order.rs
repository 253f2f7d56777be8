//! Streams, events and graphs: a wait that is missing shows, one that is there holds.

use crate::gpu::{Buffer, Pinned, Stream, arg, launch};
use cudarc::driver::{DriverError, result, sys};

const N: usize = 64;

fn axpy(stream: &Stream, y: &Buffer<f32>, x: &Buffer<f32>, a: f32) {
    launch(stream, "test_axpy", 1, N as u32, &[arg(y.at), arg(x.at), arg(a), arg(N as i32)]);
}

#[test]
fn missing_wait_of_a_stream_shows() {
    let ones = Buffer::from(&[1f32; N]);
    let mut right = [0, 0];
    for _ in 0..20 {
        for ordered in [false, true] {
            let (first, second) = (Stream::new(), Stream::new());
            let (x, y) = (Buffer::from(&[0f32; N]), Buffer::from(&[0f32; N]));
            for _ in 0..3 {
                axpy(&first, &x, &ones, 1.0);
            }
            if ordered {
                second.after(&first);
            }
            axpy(&second, &y, &x, 1.0);
            second.wait();
            right[usize::from(ordered)] += i32::from(y.read() == [3.0; N]);
            first.wait();
        }
    }
    assert_eq!(right[1], 20);
    assert!(right[0] < 10, "{} of 20 were right without a wait", right[0]);
}

#[test]
fn missing_wait_of_the_host_shows() {
    let mut early = 0;
    for _ in 0..20 {
        let stream = Stream::new();
        let (x, y) = (Buffer::from(&[1f32; N]), Buffer::from(&[0f32; N]));
        let mut host = Pinned::new(N);
        axpy(&stream, &y, &x, 2.0);
        stream.download(&mut host, &y);
        assert!(host.values().iter().all(|v| v.is_nan()), "nobody has waited yet");
        // A blocking copy waits for the default stream alone.
        early += i32::from(y.read() == [0.0; N]);
        stream.wait();
        assert_eq!(host.values(), [2.0; N]);
    }
    assert!(early > 0);
}

#[test]
fn pinned_memory_is_read_when_the_copy_runs() {
    let stream = Stream::new();
    let y = Buffer::<f32>::fresh(N);
    let mut host = Pinned::new(N);
    host.values().fill(1.0);
    stream.upload(&y, &mut host);
    host.values().fill(2.0);
    stream.wait();
    assert_eq!(y.read(), [2.0; N]);
    // Other memory is read at once.
    let mut values = vec![3f32; N];
    // SAFETY: the buffer holds that many.
    unsafe { result::memcpy_htod_async(y.at, &values, stream.0).unwrap() };
    values.fill(4.0);
    stream.wait();
    assert_eq!(y.read(), [3.0; N]);
}

#[test]
fn questions_end() {
    let stream = Stream::new();
    let (x, y) = (Buffer::from(&[1f32; N]), Buffer::from(&[0f32; N]));
    for _ in 0..10 {
        axpy(&stream, &y, &x, 1.0);
    }
    let event = result::event::create(sys::CUevent_flags::CU_EVENT_DEFAULT).unwrap();
    // SAFETY: event and stream live.
    unsafe {
        result::event::record(event, stream.0).unwrap();
        let mut not_yet = 0;
        while let Err(DriverError(code)) = result::event::query(event) {
            assert_eq!(code, sys::CUresult::CUDA_ERROR_NOT_READY);
            not_yet += 1;
        }
        assert!(not_yet > 0, "the work did not run while it was queued");
        result::event::destroy(event).unwrap();
    }
    stream.wait();
    assert_eq!(y.read(), [10.0; N]);
}

#[test]
fn events_measure() {
    let stream = Stream::new();
    let event = || result::event::create(sys::CUevent_flags::CU_EVENT_DEFAULT).unwrap();
    let (start, end) = (event(), event());
    // SAFETY: events and stream live.
    unsafe {
        assert_eq!(
            result::event::elapsed(start, end).unwrap_err().0,
            sys::CUresult::CUDA_ERROR_INVALID_HANDLE
        );
        result::event::record(start, stream.0).unwrap();
        result::event::record(end, stream.0).unwrap();
        result::event::synchronize(end).unwrap();
        assert!(result::event::elapsed(start, end).unwrap() >= 0.0);
        for e in [start, end] {
            result::event::destroy(e).unwrap();
            assert_eq!(sys::cuEventRecord(e, stream.0), sys::CUresult::CUDA_ERROR_INVALID_HANDLE);
        }
    }
}

/// Captures what `work` queues on the stream.
fn capture(stream: &Stream, work: impl FnOnce()) -> Result<sys::CUgraph, DriverError> {
    // SAFETY: the stream lives.
    unsafe {
        result::stream::begin_capture(
            stream.0,
            sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL,
        )
        .unwrap();
        work();
        result::stream::end_capture(stream.0)
    }
}

fn instantiate(graph: sys::CUgraph) -> sys::CUgraphExec {
    let mut executable = std::ptr::null_mut();
    // SAFETY: the graph lives.
    unsafe { sys::cuGraphInstantiateWithFlags(&mut executable, graph, 0).result().unwrap() };
    executable
}

/// One step on two streams: y += 2x, z += 3x, then y += z.
fn step(first: &Stream, second: &Stream, x: &Buffer<f32>, y: &Buffer<f32>, z: &Buffer<f32>, a: f32) {
    second.after(first);
    axpy(first, y, x, a);
    axpy(second, z, x, 3.0);
    first.after(second);
    axpy(first, y, z, 1.0);
}

#[test]
fn graph_equals_direct_launches() {
    let (first, second) = (Stream::new(), Stream::new());
    let x = Buffer::from(&(0..N).map(|i| i as f32).collect::<Vec<_>>());
    let buffers = || (Buffer::from(&[0f32; N]), Buffer::from(&[0f32; N]));
    let (y, z) = buffers();
    let graph = capture(&first, || step(&first, &second, &x, &y, &z, 2.0)).unwrap();
    first.wait();
    assert_eq!(y.read(), [0.0; N], "captured work does not run");
    let executable = instantiate(graph);
    let other = capture(&first, || step(&first, &second, &x, &y, &z, 5.0)).unwrap();
    // SAFETY: graphs and stream live.
    unsafe {
        for _ in 0..4 {
            result::graph::launch(executable, first.0).unwrap();
        }
        let mut info = std::mem::zeroed();
        sys::cuGraphExecUpdate_v2(executable, other, &mut info).result().unwrap();
        result::graph::launch(executable, first.0).unwrap();
        first.wait();
        let fewer = capture(&first, || axpy(&first, &y, &x, 1.0)).unwrap();
        assert_eq!(
            sys::cuGraphExecUpdate_v2(executable, fewer, &mut info),
            sys::CUresult::CUDA_ERROR_GRAPH_EXEC_UPDATE_FAILURE
        );
        assert_eq!(info.result, sys::CUgraphExecUpdateResult::CU_GRAPH_EXEC_UPDATE_ERROR_TOPOLOGY_CHANGED);
        for g in [graph, other, fewer] {
            sys::cuGraphDestroy(g).result().unwrap();
        }
        sys::cuGraphExecDestroy(executable).result().unwrap();
    }
    let (direct_y, direct_z) = buffers();
    for a in [2.0, 2.0, 2.0, 2.0, 5.0] {
        step(&first, &second, &x, &direct_y, &direct_z, a);
    }
    first.wait();
    assert_eq!(y.read(), direct_y.read());
    assert_eq!(z.read(), direct_z.read());
}

#[test]
fn capture_refuses_what_waits() {
    let (first, second) = (Stream::new(), Stream::new());
    let (x, y) = (Buffer::from(&[1f32; N]), Buffer::from(&[0f32; N]));
    // SAFETY: the stream lives.
    let wait = |s: &Stream| unsafe { sys::cuStreamSynchronize(s.0) };
    let unsupported = sys::CUresult::CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
    assert_eq!(
        capture(&first, || assert_eq!(wait(&first), unsupported)).unwrap_err().0,
        sys::CUresult::CUDA_ERROR_STREAM_CAPTURE_INVALIDATED
    );
    let unjoined = capture(&first, || {
        second.after(&first);
        axpy(&second, &y, &x, 1.0);
    });
    assert_eq!(unjoined.unwrap_err().0, sys::CUresult::CUDA_ERROR_STREAM_CAPTURE_UNJOINED);
    // SAFETY: the emulator only allocates.
    let allocate = || unsafe { result::malloc_sync(16).unwrap_err().0 };
    let refused = capture(&first, || assert_eq!(allocate(), unsupported));
    assert_eq!(refused.unwrap_err().0, sys::CUresult::CUDA_ERROR_STREAM_CAPTURE_INVALIDATED);
    // The streams are as before.
    axpy(&second, &y, &x, 1.0);
    second.wait();
    assert_eq!(y.read(), [1.0; N]);
}
