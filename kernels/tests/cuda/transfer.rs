use crate::check::*;
use half::bf16;
use kernels::Backend;
use kernels::backend::*;
use kernels::cuda::{Cuda, Memory, Options, Work};

type F32 = Cuda<f32>;

fn fill<T: bytemuck::Pod + Send + Sync>(cuda: &F32, memory: &mut Memory<T>, values: &[T]) {
    cuda.upload(F32::at_mut(memory, 0..values.len()), values).unwrap();
}

fn clear<T: bytemuck::Pod + Send + Sync>(cuda: &F32, memory: &mut Memory<T>) {
    let len = memory.len();
    cuda.clear(F32::at_mut(memory, 0..len)).unwrap();
}

fn beside(
    cuda: &F32,
    memory: &mut Memory<u32>,
    values: &[u32],
    after: &kernels::cuda::Mark,
) -> kernels::cuda::Mark {
    cuda.upload_beside(F32::at_mut(memory, 0..values.len()), values, after).unwrap()
}

#[test]
fn a_batch_arrives_after_the_ops_before_and_before_those_that_wait() {
    let cuda = cuda::<f32>();
    let mut batch = put(&cuda, &[0u32; 100]);
    for round in 0..40 {
        let values: Vec<u32> = (0..100).map(|i| i * 1000 + round).collect();
        // An op that uses what lay there before.
        clear(&cuda, &mut batch);
        let used = cuda.mark().unwrap();
        let arrived = beside(&cuda, &mut batch, &values, &used);
        cuda.wait(&arrived).unwrap();
        if round % 2 == 0 {
            assert_eq!(get(&cuda, &batch), values, "round {round}");
        } else {
            clear(&cuda, &mut batch);
            assert_eq!(get(&cuda, &batch), [0; 100], "round {round}");
        }
    }
}

/// Longer and longer, so that pinned buffers are outgrown, then equal, so that they are used again.
fn length_of(batch: usize) -> usize {
    400 * (batch + 1).min(7)
}

#[test]
fn the_host_may_change_a_batch_at_once() {
    let cuda = cuda::<f32>();
    let mut batches: Vec<_> = (0..20).map(|_| put(&cuda, &[0u32; 5000])).collect();
    let mut values = vec![0u32; 5000];
    let start = cuda.mark().unwrap();
    let mut last = cuda.mark().unwrap();
    for (i, batch) in batches.iter_mut().enumerate() {
        let len = length_of(i);
        values[..len].fill(i as u32 + 1);
        last = beside(&cuda, batch, &values[..len], &start);
        values.fill(77);
    }
    cuda.wait(&last).unwrap();
    for (i, batch) in batches.iter().enumerate() {
        let len = length_of(i);
        let host = get(&cuda, batch);
        assert!(host[..len].iter().all(|&x| x == i as u32 + 1), "batch {i}");
        assert!(host[len..].iter().all(|&x| x == 0), "batch {i}");
    }
}

#[test]
fn an_empty_batch_is_a_batch() {
    let cuda = cuda::<f32>();
    let mut none = put::<f32, u32>(&cuda, &[]);
    let start = cuda.mark().unwrap();
    let arrived = beside(&cuda, &mut none, &[], &start);
    cuda.wait(&arrived).unwrap();
    let mut batch = put(&cuda, &[0u32; 3]);
    let error = cuda.upload_beside(F32::at_mut(&mut batch, 0..3), &[1, 2], &start).err().unwrap();
    assert_eq!(error.to_string(), "upload_beside: `src` has 2 elements, expected 3");
}

#[test]
fn numbers_are_those_of_their_time() {
    let cuda = cuda::<f32>();
    let [mut a, mut b] = [put(&cuda, &[0f32; 3]), put(&cuda, &[0f32; 2])];
    let mut pending = Vec::new();
    for round in 0..20 {
        fill(&cuda, &mut a, &[round as f32; 3]);
        fill(&cuda, &mut b, &[-round as f32; 2]);
        let parts = [F32::at(&a, 0..3), F32::at(&a, 0..0), F32::at(&b, 1..2)];
        pending.push((round, cuda.read_later(&parts).unwrap()));
        clear(&cuda, &mut a);
        clear(&cuda, &mut b);
        // Some are read at once, some later and not in order, some never.
        match round % 4 {
            0 => {
                let (round, numbers) = pending.remove(0);
                check_numbers(round, &cuda.read(numbers).unwrap());
            }
            1 => drop(pending.pop()),
            _ => {}
        }
    }
    for (round, numbers) in pending.into_iter().rev() {
        check_numbers(round, &cuda.read(numbers).unwrap());
    }
    assert_eq!(cuda.read(cuda.read_later(&[]).unwrap()).unwrap(), [0f32; 0]);
}

fn check_numbers(round: i32, numbers: &[f32]) {
    let x = round as f32;
    assert_eq!(numbers, [x, x, x, -x]);
}

/// Steps that change their sizes, addresses and numbers: what they leave behind.
fn steps(graph: bool) -> Vec<Vec<u32>> {
    let cuda = F32::new(device(), Options { graph, measure: false, ..Options::default() }).unwrap();
    let cols = 30;
    let [x, w] = [put_elems(&cuda, &noise(200 * cols, 1)), put_elems(&cuda, &noise(cols * cols, 2))];
    let mut y = put_elems::<f32>(&cuda, &noise(200 * cols, 3));
    let mut grads = put_f32(&cuda, &noise(2 * cols * cols, 4));
    let mut slots = [put(&cuda, &[0u32; 64]), put(&cuda, &[0u32; 64])];
    let (mut left, mut late) = (Vec::new(), None);
    let mut used = [cuda.mark().unwrap(), cuda.mark().unwrap()];
    for step in 0..9usize {
        // The fourth to the sixth step are alike but for addresses and sizes; others are other sequences of ops.
        let batch: Vec<u32> = (0..64).map(|i| (step * 64 + i) as u32).collect();
        let slot = step % 2;
        let arrived = beside(&cuda, &mut slots[slot], &batch, &used[slot]);
        let mut short_lived = (step == 8).then(|| put_elems::<f32>(&cuda, &noise(200 * cols, 9)));
        cuda.begin_step().unwrap();
        cuda.wait(&arrived).unwrap();
        for micro in 0..if step < 3 { step } else { 2 } {
            let rows = [200, 7, 33][(step + micro) % 3];
            let size = LinearSize { rows, inputs: cols, outputs: cols };
            let at = (step * 3..step * 3 + rows * cols).start.min(200 * cols - rows * cols);
            let x = F32::at(short_lived.as_ref().unwrap_or(&x), at..at + rows * cols);
            let all = F32::at(&w, 0..cols * cols);
            let forward =
                LinearForward { y: F32::at_mut(&mut y, 0..rows * cols), x, w: all, bias: None, size };
            cuda.linear_forward(forward).unwrap();
            let dw = micro * cols * cols..(micro + 1) * cols * cols;
            let table = F32::at_mut(&mut grads, 0..2 * cols * cols);
            let dy = F32::at(&y, 0..rows * cols);
            cuda.linear_wgrad(LinearWgrad { grads: table, dw, dy, x, size }).unwrap();
            // Memory that is given back while ops that use it may be part of a graph.
            drop(short_lived.take());
            if step == 7 {
                // Memory that is taken and given back in a step.
                let other = put_elems::<f32>(&cuda, &noise(rows * cols, 9));
                left.push(bits(&get(&cuda, &other)));
            }
            used[slot] = cuda.mark().unwrap();
        }
        if step % 3 == 1 {
            cuda.clear(F32::at_mut(&mut y, 0..step)).unwrap();
        }
        let numbers = cuda.read_later(&[F32::at(&y, 0..50), F32::at(&grads, 100..150)]).unwrap();
        cuda.end_step().unwrap();
        left.push(get(&cuda, &slots[slot]));
        if let Some(numbers) = late.replace(numbers) {
            left.push(bits(&cuda.read(numbers).unwrap()));
        }
    }
    left.push(bits(&get(&cuda, &y)));
    left.push(bits(&get(&cuda, &grads)));
    left
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|x| x.to_bits()).collect()
}

#[test]
fn graphs_change_nothing() {
    let (without, with) = (steps(false), steps(true));
    assert_eq!(without.len(), with.len());
    for (i, (a, b)) in without.iter().zip(&with).enumerate() {
        assert!(a == b, "number {i} of what the steps leave");
    }
}

/// A step that fails at its first graph shows that there are graphs: the same test in a process of its own.
#[test]
fn steps_are_launched_as_graphs() {
    if !is_emulated(&cuda::<f32>()) {
        return;
    }
    for call in ["cuStreamBeginCapture_v2", "cuStreamEndCapture", "cuGraphExecUpdate_v2", "cuGraphLaunch"] {
        let run = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["transfer::graphs_change_nothing", "--exact", "--test-threads=1"])
            .env("EMULATOR_FAIL", format!("{call}:1"))
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&run.stdout);
        // An executable graph that cannot take another's parameters is built again.
        let works = call == "cuGraphExecUpdate_v2";
        assert_eq!(run.status.success(), works, "{call}: {said}");
        assert_eq!(said.contains("graph"), !works || said.contains("ok"), "{call}: {said}");
    }
}

#[test]
fn every_op_is_timed_and_its_work_counted() {
    let cuda = cuda::<bf16>();
    let [x, w] = [put_elems(&cuda, &noise(20 * 30, 1)), put_elems(&cuda, &noise(30 * 30, 2))];
    let mut y = put_elems::<bf16>(&cuda, &noise(20 * 30, 3));
    let device = cuda.device().clone();
    let size = LinearSize { rows: 20, inputs: 30, outputs: 30 };
    let mut forward = || {
        let y = Cuda::<bf16>::at_mut(&mut y, 0..600);
        let (x, w) = (Cuda::<bf16>::at(&x, 0..600), Cuda::<bf16>::at(&w, 0..900));
        cuda.linear_forward(LinearForward { y, x, w, bias: None, size }).unwrap();
    };
    forward();
    assert_eq!(device.profile().unwrap(), []);
    device.set_profile(true).unwrap();
    (0..3).for_each(|_| forward());
    let mut other = put_elems::<bf16>(&cuda, &noise(20, 3));
    cuda.clear(Cuda::<bf16>::at_mut(&mut other, 0..20)).unwrap();
    let times = device.profile().unwrap();
    let mut calls: Vec<_> = times.iter().map(|t| (t.name.as_str(), t.calls, t.launches())).collect();
    calls.sort();
    // what fills new memory is no op
    assert_eq!(calls, [("clear", 1, 1), ("fill", 1, 1), ("linear_forward 20 x 30 -> 30", 3, 3)]);
    let work = |name: &str| times.iter().find(|t| t.name.starts_with(name)).unwrap().work;
    let product = Work { bytes: 3 * 2 * (2 * 20 * 30 + 30 * 30), flops: 3 * 2 * 20 * 30 * 30 };
    assert_eq!((work("linear"), work("clear")), (product, Work { bytes: 40, flops: 0 }));
    assert_eq!(work("fill"), Work::default());
    assert!(device.time_bracket().unwrap() >= 0.0 && device.copy_rate(1 << 16).unwrap() > 0.0);
    assert!(times.iter().all(|t| t.milliseconds > 0.0), "{times:?}");
    assert!(times[0].milliseconds >= times[1].milliseconds);
    device.set_profile(false).unwrap();
    forward();
    assert_eq!(device.profile().unwrap(), []);
    let ten = || {
        (0..10).for_each(|_| forward());
        Ok(())
    };
    let time = device.time(ten).unwrap();
    assert!(time > 0.0 && time < 60e3, "{time} ms");
}

#[test]
fn too_little_memory_is_told_in_numbers() {
    let cuda = cuda::<f32>();
    let error = cuda.zeros::<u8>("the test's buffer", 1 << 45).err().unwrap().to_string();
    let (_, total) = cuda.device().memory().unwrap();
    for word in ["35184372088832 bytes for the test's buffer", &total.to_string(), "GPU 0", "free"] {
        assert!(error.contains(word), "{error}");
    }
}
