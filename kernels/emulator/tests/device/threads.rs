//! The threads of a block: order, barriers, shuffles, shared memory, asynchronous copies.

use crate::gpu::{Buffer, Stream, arg, launch, try_launch};
use half::bf16;

fn ramp(n: usize) -> Vec<f32> {
    (0..n).map(|i| i as f32).collect()
}

#[test]
fn every_thread_runs_once() {
    let stream = Stream::new();
    for (grid, block) in
        [((1, 1, 1), (1, 1, 1)), ((5, 3, 2), (7, 3, 2)), ((1, 1, 9), (1, 16, 64)), ((1000, 1, 1), (33, 1, 1))]
    {
        let count = |(x, y, z): (u32, u32, u32)| (x * y * z) as usize;
        let n = count(grid) * count(block);
        let visits = Buffer::from(&vec![0i32; n]);
        try_launch(&stream, "test_visit", grid, block, 0, &[arg(visits.at)]).unwrap();
        stream.wait();
        assert!(visits.read().iter().all(|&v| v == 1));
    }
}

#[test]
fn threads_run_in_another_order_each_time() {
    let stream = Stream::new();
    let order = Buffer::from(&[0i32; 8 * 256]);
    launch(&stream, "test_order", 8, 256, &[arg(order.at)]);
    stream.wait();
    let order = order.read();
    let blocks: Vec<&[i32]> = order.chunks(256).collect();
    for (i, block) in blocks.iter().enumerate() {
        let mut sorted = block.to_vec();
        sorted.sort();
        assert!(sorted.iter().enumerate().all(|(i, &v)| v == i as i32), "each took one number");
        assert!(blocks[..i].iter().all(|other| other != block));
    }
}

#[test]
fn missing_barrier_shows() {
    let stream = Stream::new();
    let x = Buffer::from(&ramp(4 * 256));
    let mut wrong = [0, 0];
    for _ in 0..8 {
        for barrier in [0, 1] {
            let y = Buffer::<f32>::fresh(4 * 256);
            launch(&stream, "test_reverse", 4, 256, &[arg(y.at), arg(x.at), arg(barrier)]);
            stream.wait();
            let right = |(i, &v): (usize, &f32)| v == (i / 256 * 256 + 255 - i % 256) as f32;
            wrong[barrier as usize] += i32::from(!y.read().iter().enumerate().all(right));
        }
    }
    assert_eq!(wrong, [8, 0], "of 8 runs without and with the barrier");
}

#[test]
fn missing_second_barrier_shows() {
    let stream = Stream::new();
    let x = Buffer::from(&ramp(256));
    for (barrier, right) in [(1, true), (0, false)] {
        let y = Buffer::<f32>::fresh(16 * 256);
        launch(&stream, "test_rounds", 16, 256, &[arg(y.at), arg(x.at), arg(4i32), arg(barrier)]);
        stream.wait();
        let expected = |i: usize| 4.0 * ((i + 32) % 256) as f32 + 6.0;
        assert_eq!(y.read().iter().enumerate().all(|(i, &v)| v == expected(i)), right);
    }
}

#[test]
fn shared_memory_is_poisoned_in_each_block() {
    let stream = Stream::new();
    let y = Buffer::from(&[0f32; 3 * 128]);
    try_launch(&stream, "test_poison", (3, 1, 1), (64, 1, 1), 256, &[arg(y.at)]).unwrap();
    stream.wait();
    assert!(y.read().iter().all(|v| v.to_bits() == u32::MAX));
}

#[test]
fn sums_of_warps_and_blocks() {
    let stream = Stream::new();
    let x = Buffer::from(&ramp(128));
    let y = Buffer::<f32>::fresh(3 * 128);
    launch(&stream, "test_sums", 1, 128, &[arg(y.at), arg(x.at)]);
    stream.wait();
    for (i, v) in y.read().chunks(3).enumerate() {
        let warp = i / 32 * 32;
        assert_eq!(v, [(0..32).map(|l| (warp + l) as f32).sum(), (warp + 31) as f32, 127.0 * 64.0]);
    }
}

#[test]
fn shuffles_and_votes() {
    let stream = Stream::new();
    let y = Buffer::<i32>::fresh(9 * 32);
    launch(&stream, "test_shuffles", 1, 32, &[arg(y.at)]);
    stream.wait();
    for (lane, v) in y.read().chunks(9).enumerate() {
        let lane = lane as i32;
        let votes = (0..32).filter(|l| l % 3 == 0).map(|l| 1u32 << l).sum::<u32>() as i32;
        assert_eq!(v[0], 5);
        assert_eq!(v[1], lane / 8 * 8 + (lane + 3) % 8);
        assert_eq!(v[2], lane ^ 9);
        assert_eq!(v[3], if lane < 28 { lane + 4 } else { lane });
        assert_eq!(v[4], if lane % 16 >= 4 { lane - 4 } else { lane });
        assert_eq!(v[5], votes);
        assert_eq!(v[6], 1);
        assert_eq!(v[7], if lane < 16 { 120 } else { 376 + 16 });
        assert_eq!(v[8], if lane % 8 < 7 { lane + 1 } else { lane });
    }
}

#[test]
fn threads_that_have_left_count_at_the_blocks_barrier() {
    let stream = Stream::new();
    for n in [1, 31, 32, 65, 128] {
        let y = Buffer::<i32>::fresh(n);
        launch(&stream, "test_early_exit", 1, 128, &[arg(y.at), arg(n as i32)]);
        stream.wait();
        let even = n.div_ceil(2);
        assert!(y.read().iter().enumerate().all(|(i, &v)| v as usize == n - 1 - i + 1000 * even));
    }
}

#[test]
fn named_barriers() {
    let stream = Stream::new();
    for _ in 0..8 {
        let y = Buffer::<i32>::fresh(3 * 64);
        launch(&stream, "test_named_barriers", 1, 128, &[arg(y.at)]);
        stream.wait();
        assert!(y.read().iter().enumerate().all(|(i, &v)| v == (100 * (i / 64) + 63 - i % 64) as i32));
    }
}

#[test]
fn asynchronous_copies_are_there_when_waited_for() {
    let stream = Stream::new();
    // 508 numbers: the last thread's copy fills with zeros.
    let x = Buffer::from(&ramp(508));
    let run = |keep: i32| {
        let y = Buffer::<f32>::fresh(512);
        launch(&stream, "test_async_copy", 1, 64, &[arg(y.at), arg(x.at), arg(508i32), arg(keep)]);
        stream.wait();
        y.read()
    };
    let expected = |i: usize| if i < 508 { i as f32 } else { 0.0 };
    for _ in 0..4 {
        assert!(run(0).iter().enumerate().all(|(i, &v)| v == expected(i)));
        let one_left = run(1);
        assert!(one_left[..256].iter().enumerate().all(|(i, &v)| v == expected(i)));
        assert!(one_left[256..].iter().any(|v| v.is_nan()));
        assert!(run(2)[..256].iter().any(|v| v.is_nan()));
    }
}

#[test]
fn bf16_rounds_as_the_device() {
    // Every pattern; what lies halfway to the next, and one bit to either side of that.
    let stream = Stream::new();
    for add in [0u32, 0x7fff, 0x8000, 0x8001] {
        let x: Vec<f32> = (0..1u32 << 16).map(|i| f32::from_bits((i << 16) + add)).collect();
        let (input, n) = (Buffer::from(&x), 1usize << 16);
        let (rounded, widened) = (Buffer::<u16>::fresh(n), Buffer::<f32>::fresh(n));
        launch(
            &stream,
            "test_bf16",
            256,
            256,
            &[arg(rounded.at), arg(widened.at), arg(input.at), arg(n as i32)],
        );
        stream.wait();
        for ((&x, rounded), (i, widened)) in
            x.iter().zip(rounded.read()).zip(widened.read().iter().enumerate())
        {
            let expected = if x.is_nan() { 0x7fff } else { bf16::from_f32(x).to_bits() };
            assert_eq!(rounded, expected, "{x:e}");
            assert_eq!(widened.to_bits(), (i as u32) << 16);
        }
    }
}

#[test]
fn parameters_of_any_size() {
    #[repr(C)]
    #[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
    struct Parameters {
        x: u64,
        offset: i32,
        unused: i32,
        scale: f64,
    }
    let stream = Stream::new();
    let (x, y) = (Buffer::from(&ramp(8)), Buffer::<f64>::fresh(4));
    let p = Parameters { x: x.at, offset: 3, unused: 0, scale: 0.5 };
    launch(&stream, "test_parameters", 1, 4, &[arg(y.at), arg(5i8), arg(p), arg(300i16)]);
    stream.wait();
    assert_eq!(y.read(), [1.5 - 295.0, 2.0 - 295.0, 2.5 - 295.0, 3.0 - 295.0]);
}
