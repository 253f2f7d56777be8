//! Ranks over NCCL: each is a process of its own, this program again. On the emulator each has a device of its own; on real
//! GPUs there must be as many as ranks, or an NCCL that takes several on one (`NCCL_MULTI_RANK_GPU_ENABLE=1`).

mod jobs;

use crate::check::{get, get_f32, noise, put, put_f32, rounded_f32, same_bits};
use bytemuck::Pod;
use half::bf16;
use jobs::{Job, Rank};
use kernels::Backend;
use kernels::collective::{Collective, Division, Wire};
use kernels::cuda::{Cuda, Element, Memory, Nccl, Options, View};
use std::ops::Range;
use std::time::Duration;

/// Of the table: no bucket and no shard fits a vector.
const LEN: usize = 40_007;
const BUCKETS: [Range<usize>; 3] = [29_001..LEN, 7_777..29_001, 0..7_777];
const ENOUGH: Duration = Duration::from_secs(60);

/// The body of every other process: does what the environment says, as one of several ranks.
#[test]
#[ignore = "started by the other tests, once for each rank"]
fn rank_of_a_job() {
    let Some(rank) = Rank::from_environment() else { return };
    match rank.scenario.as_str() {
        "exchange" => {
            let mut nccl = rank.join(ENOUGH).unwrap();
            exchange::<bf16>(&rank, &mut nccl);
            exchange::<f32>(&rank, &mut nccl);
            println!("all is well: {}", Collective::<Cuda<f32>>::describe(&nccl));
        }
        "tables" => tables(&rank, &mut rank.join(ENOUGH).unwrap()),
        "work" => own_work(&rank, &mut rank.join(ENOUGH).unwrap()),
        "join" => {
            let patience = Duration::from_millis(1500);
            println!("{}", rank.join(patience).map_or_else(|e| e.to_string(), |_| "joined".to_owned()));
        }
        "reduce until it fails" => reduce_until_it_fails(&rank, usize::MAX),
        "die at step 3" => reduce_until_it_fails(&rank, if rank.rank == 1 { 3 } else { usize::MAX }),
        other => panic!("no scenario {other:?}"),
    }
}

/// Small integers: their sums are exact in every order, in bf16 too.
fn integers(rank: usize) -> Vec<f64> {
    (0..LEN).map(|i| ((i * 7 + rank * 13) % 41) as f64 - 20.0).collect()
}

#[track_caller]
fn equal<T: PartialEq + std::fmt::Debug>(what: &str, got: &[T], want: &[T]) {
    assert_eq!(got.len(), want.len(), "{what}");
    let other = (0..got.len()).find(|&i| got[i] != want[i]);
    assert!(
        other.is_none(),
        "{what}: at {} {:?} for {:?}",
        other.unwrap(),
        got[other.unwrap()],
        want[other.unwrap()]
    );
}

fn division(rank: &Rank, sharded: bool) -> Division {
    match sharded {
        true => Division::sharded(LEN, rank.world, 1 << 10),
        false => Division::Replicated { len: LEN },
    }
}

/// Reduces as a step does: buckets leave while ops go on.
fn reduced<E: Element>(
    cuda: &Cuda<E>,
    nccl: &mut Nccl,
    own: &[f64],
    division: &Division,
    wire: Wire,
) -> Vec<f64> {
    let mut grads: Memory<f32> = cuda.zeros("gradients", LEN).unwrap();
    let source = put_f32(cuda, own);
    let host: Vec<f32> = get(cuda, &source);
    cuda.upload(Cuda::<E>::at_mut(&mut grads, 0..LEN), &host).unwrap();
    for bucket in BUCKETS {
        nccl.begin_reduce(cuda, &grads, bucket, division, wire).unwrap();
    }
    Collective::<Cuda<E>>::finish_reduce(nccl, cuda, &mut grads).unwrap();
    get_f32(cuda, &grads)
}

fn exchange<E: Element>(rank: &Rank, nccl: &mut Nccl) {
    let cuda = cuda::<E>(rank);
    for sharded in [false, true] {
        let division = division(rank, sharded);
        let own = division.of(rank.rank);
        let all: Vec<Vec<f64>> = (0..rank.world).map(integers).collect();
        let sums: Vec<f64> = (0..LEN).map(|i| all.iter().map(|of| of[i]).sum()).collect();
        for wire in [Wire::Full, Wire::Bf16, Wire::Full] {
            let got = reduced(&cuda, nccl, &all[rank.rank], &division, wire);
            equal(&format!("sharded: {sharded}, {wire:?}"), &got[own.clone()], &sums[own.clone()]);
        }
        real_numbers(rank, &cuda, nccl, &division);
        gathered(rank, &cuda, nccl, &division);
    }
    let mut sums: Memory<f64> = put(&cuda, &[0.25, rank.rank as f64 + 1e-12, -0.0]);
    nccl.sum(&cuda, Cuda::<E>::at_mut(&mut sums, 0..3)).unwrap();
    let want: f64 = (0..rank.world).map(|r| r as f64 + 1e-12).sum();
    let got = get(&cuda, &sums);
    assert_eq!(got[0], 0.25 * rank.world as f64);
    assert!((got[1] - want).abs() <= 2.0 * f64::EPSILON * want, "{} for {want}", got[1]);
    on_hosts::<E>(rank, nccl);
}

/// Sums of any numbers are off by what rounding every partial sum costs, at most.
fn real_numbers<E: Element>(rank: &Rank, cuda: &Cuda<E>, nccl: &mut Nccl, division: &Division) {
    let all: Vec<Vec<f64>> = (0..rank.world).map(|r| rounded_f32(&noise(LEN, r as u64))).collect();
    let own = division.of(rank.rank);
    for (wire, epsilon) in
        [(Wire::Full, f64::from(f32::EPSILON)), (Wire::Bf16, f64::from(f32::from(bf16::EPSILON)))]
    {
        let got = reduced(cuda, nccl, &all[rank.rank], division, wire);
        let mut errors = 0.0f64;
        for i in own.clone() {
            let (want, size) =
                all.iter().fold((0.0, 0.0), |(sum, size), of| (sum + of[i], size + of[i].abs()));
            // Each number is rounded once, and each of the `world - 1` sums, none of which exceeds `size`.
            let bound = 0.5 * epsilon * size * rank.world as f64 * (1.0 + epsilon);
            assert!((got[i] - want).abs() <= bound, "{wire:?}, element {i}: {} for {want}", got[i]);
            errors = errors.max((got[i] - want).abs());
        }
        if wire == Wire::Bf16 && !own.is_empty() {
            assert!(errors > f64::from(f32::EPSILON), "nothing was rounded to bf16");
        }
        let again = reduced(cuda, nccl, &all[rank.rank], division, wire);
        same_bits("the same sums again", &got[own.clone()], &again[own.clone()]);
    }
}

/// Of the rank's own part of the weights all have the rounded copy, and the master copy where it is asked for.
fn gathered<E: Element>(rank: &Rank, cuda: &Cuda<E>, nccl: &mut Nccl, division: &Division) {
    let of = |r: usize| -> Vec<f32> { noise(LEN, 100 + r as u64).iter().map(|&x| x as f32).collect() };
    let mut weights = cuda.weights(LEN).unwrap();
    cuda.upload_weights(&mut weights, 0, &of(rank.rank)).unwrap();
    // The second lies in two shards.
    let masters = [5..900, LEN / rank.world - 1_500..LEN / rank.world + 1_500];
    nccl.gather_weights(cuda, &mut weights, division, &masters).unwrap();
    let owner = |i: usize| match division {
        Division::Sharded(shards) => shards.iter().position(|s| s.contains(&i)).unwrap(),
        Division::Replicated { .. } => rank.rank,
    };
    let all: Vec<Vec<f32>> = (0..rank.world).map(of).collect();
    let mut elements = vec![0.0; LEN];
    cuda.download_elems(Cuda::<E>::weight(&weights, 0..LEN), &mut elements).unwrap();
    let want: Vec<f64> = (0..LEN).map(|i| E::from_f32(all[owner(i)][i]).to_f64()).collect();
    equal("weights", &elements, &want);
    let read = |range: Range<usize>| download(cuda, Cuda::<E>::master(&weights, range));
    let own = division.of(rank.rank);
    equal("own masters", &read(own.clone()), &all[rank.rank][own]);
    for part in masters {
        let want: Vec<f32> = part.clone().map(|i| all[owner(i)][i]).collect();
        equal("masters", &read(part), &want);
    }
}

fn download<E: Element, T: Pod + Send + Sync>(cuda: &Cuda<E>, view: View<'_, T>) -> Vec<T> {
    let mut host = vec![T::zeroed(); view.len()];
    cuda.download(view, &mut host).unwrap();
    host
}

fn on_hosts<E: Element>(rank: &Rank, nccl: &mut Nccl) {
    let ranks: &mut dyn Collective<Cuda<E>> = nccl;
    let mut numbers = [1.0, rank.rank as f64];
    ranks.sum_host(&mut numbers).unwrap();
    assert_eq!(numbers, [rank.world as f64, (rank.world * (rank.world - 1) / 2) as f64]);
    let mut bytes = vec![rank.rank as u8; 2 * rank.world];
    let parts: Vec<_> = (0..rank.world).map(|r| 2 * r..2 * r + 2).collect();
    ranks.gather_bytes(&mut bytes, &parts).unwrap();
    assert!(bytes.iter().enumerate().all(|(i, &byte)| usize::from(byte) == i / 2));
}

fn cuda<E: Element>(rank: &Rank) -> Cuda<E> {
    Cuda::new(rank.device(), Options { graph: false, measure: false, ..Options::default() }).unwrap()
}

/// Tables of several pieces, in shares of different sizes, one of them empty, come to the first rank, and go from it to all.
fn tables(rank: &Rank, nccl: &mut Nccl) {
    let cuda = cuda::<bf16>(rank);
    let ranks: &mut dyn Collective<Cuda<bf16>> = nccl;
    let edges = [0, 1_500_001, 1_500_001, 3_700_003];
    let len = edges[rank.world];
    let parts: Vec<_> = edges.windows(2).take(rank.world).map(|e| e[0]..e[1]).collect();
    let number = |i: usize| (i as f32 * 0.37).sin() + (i % 1001) as f32;
    let want: Vec<f32> = (0..len).map(number).collect();
    let own: Memory<f32> = put(&cuda, &want[parts[rank.rank].clone()]);
    let view = Cuda::<bf16>::at(&own, 0..own.len());
    let mut whole = vec![f32::NAN; if rank.rank == 0 { len } else { 0 }];
    ranks.gather_to_first(&cuda, view, &parts, &mut whole).unwrap();
    if rank.rank == 0 {
        equal("gathered", &whole, &want);
    }
    let mut all = if rank.rank == 0 { want.clone() } else { vec![f32::NAN; len] };
    ranks.send_from_first(&cuda, &mut all).unwrap();
    equal("sent", &all, &want);
    println!("all is well");
}

/// Rank 1's device has more to do; the others wait for it, and their own work does not take longer for that. What waits is
/// queued behind the work: the emulator does one thing at a time, and its clock goes on while it waits.
fn own_work(rank: &Rank, nccl: &mut Nccl) {
    let cuda = cuda::<f32>(rank);
    let ranks: &mut dyn Collective<Cuda<f32>> = nccl;
    let mut grads = put_f32(&cuda, &integers(rank.rank));
    let ops = if rank.rank == 1 { 60 } else { 2 };
    let parts = kernels::backend::stretches(&(0..LEN)).len();
    let mut sums: Memory<f64> = cuda.zeros("sums", parts).unwrap();
    let mut total = vec![0.0; rank.world];
    for _ in 0..5 {
        ranks.begin_work(&cuda).unwrap();
        for _ in 0..ops {
            let to = Cuda::<f32>::at_mut(&mut sums, 0..parts);
            cuda.square_sums(to, Cuda::<f32>::at(&grads, 0..LEN)).unwrap();
        }
        ranks.finish_reduce(&cuda, &mut grads).unwrap();
        total[rank.rank] += ranks.work_seconds().unwrap();
        ranks.sum(&cuda, Cuda::<f32>::at_mut(&mut sums, 0..parts)).unwrap();
    }
    ranks.sum_host(&mut total).unwrap();
    on_their_way(&cuda, ranks, &mut grads);
    for other in (0..rank.world).filter(|&r| r != 1) {
        assert!(total[other] > 0.0 && total[other] < 0.5 * total[1], "{total:?}");
    }
    println!("all is well");
}

/// Gradients and weights are timed where that is asked for.
fn on_their_way(cuda: &Cuda<f32>, ranks: &mut dyn Collective<Cuda<f32>>, grads: &mut Memory<f32>) {
    let division = Division::sharded(LEN, ranks.world(), 1 << 10);
    let mut weights = cuda.weights(LEN).unwrap();
    for on in [false, true, true, false] {
        ranks.time_travel(on).unwrap();
        for bucket in BUCKETS {
            ranks.begin_reduce(cuda, grads, bucket, &division, Wire::Full).unwrap();
        }
        ranks.finish_reduce(cuda, grads).unwrap();
        ranks.gather_weights(cuda, &mut weights, &division, &[]).unwrap();
        let travel = ranks.travel().unwrap();
        let times = [travel.gradients, travel.exposed, travel.weights];
        if on {
            assert!(travel.gradients > 0.0 && travel.exposed >= 0.0 && travel.weights > 0.0, "{travel:?}");
            assert!(times.iter().all(|&seconds| seconds < 60.0), "{travel:?}");
        } else {
            assert_eq!(times, [0.0; 3]);
        }
    }
}

/// Steps until something goes wrong, as training would find it out; dies after `steps`.
fn reduce_until_it_fails(rank: &Rank, steps: usize) {
    let mut nccl = rank.join(ENOUGH).unwrap();
    let cuda = cuda::<f32>(rank);
    let division = division(rank, true);
    let mut grads = put_f32(&cuda, &integers(rank.rank));
    let mut step = |nccl: &mut Nccl| -> kernels::Result<()> {
        for bucket in BUCKETS {
            nccl.begin_reduce(&cuda, &grads, bucket, &division, Wire::Full)?;
        }
        Collective::<Cuda<f32>>::finish_reduce(nccl, &cuda, &mut grads)?;
        let mut one = [0.0];
        cuda.download(Cuda::<f32>::at(&grads, 0..1), &mut one)?;
        Collective::<Cuda<f32>>::sum_host(nccl, &mut [1.0])
    };
    for _ in 0..steps.min(50) {
        if let Err(error) = step(&mut nccl) {
            println!("{error}");
            return;
        }
    }
    assert!(steps < 50, "nothing failed");
    std::process::abort();
}

#[test]
fn what_ranks_exchange_is_what_the_host_computes() {
    for world in [2, 3] {
        for seed in ["1", "7"] {
            let Some(job) = Job::new("exchange", world) else { return };
            let ended = job.set("EMULATOR_SEED", seed).run();
            for rank in &ended {
                assert!(rank.well && rank.said.contains("all is well: "), "{}", rank.said);
                assert!(rank.said.contains(&format!("{world} GPUs over NCCL 2.")), "{}", rank.said);
            }
        }
    }
}

#[test]
fn tables_of_any_size_go_between_hosts() {
    for world in [1, 2, 3] {
        let Some(job) = Job::new("tables", world) else { return };
        for ended in job.run() {
            assert!(ended.well && ended.said.contains("all is well"), "{}", ended.said);
        }
    }
}

#[test]
fn the_slowest_rank_is_the_one_whose_device_works_longest() {
    let Some(job) = Job::new("work", 3) else { return };
    for ended in job.run() {
        assert!(ended.well && ended.said.contains("all is well"), "{}", ended.said);
    }
}

#[test]
fn two_ranks_have_one_gpu_only_where_nccl_takes_that() {
    let Some(job) = Job::emulated("join", 2) else { return };
    let job = job.set("EMULATOR_DEVICES", "1");
    for ended in job.clone().run() {
        assert!(ended.said.contains("ranks 0 and 1 have the same GPU"), "{}", ended.said);
    }
    // Told to, but too old.
    let told = job.set("NCCL_MULTI_RANK_GPU_ENABLE", "1");
    for ended in told.clone().run() {
        assert!(ended.said.contains("NCCL 2.28.7 takes several on one GPU from 2.30.0 on"), "{}", ended.said);
    }
    for ended in told.set("EMULATOR_NCCL_VERSION", "23007").run() {
        assert!(ended.well && ended.said.contains("joined"), "{}", ended.said);
    }
}

#[test]
fn a_rank_that_never_joins_does_not_keep_the_others() {
    let Some(job) = Job::emulated("join", 2) else { return };
    for ended in job.set("EMULATOR_NCCL_ABSENT", "1").run() {
        assert!(ended.said.contains("other ranks have not answered within 1.5 s"), "{}", ended.said);
    }
}

#[test]
fn an_nccl_that_is_too_old_or_missing_is_told() {
    let Some(job) = Job::emulated("join", 2) else { return };
    for ended in job.set("EMULATOR_NCCL_VERSION", "21210").run() {
        let said = &ended.said;
        assert!(
            said.contains("version 2.12.10, which is too old") && said.contains("install NCCL 2.18"),
            "{said}"
        );
    }
    // In this process nothing has been loaded yet, or the emulator's; in that one, only what the system has.
    for ended in Job::emulated("join", 1).unwrap().set("WITHOUT_NCCL", "1").run() {
        let said = &ended.said;
        assert!(said.contains("libnccl.so.2) was not found") && said.contains("LD_LIBRARY_PATH"), "{said}");
    }
}

#[test]
fn errors_that_show_later_end_all_ranks() {
    let Some(job) = Job::emulated("reduce until it fails", 3) else { return };
    // In the middle of the second step: of each bucket a rank does as many operations as shards lie in it.
    let ended = job.set("EMULATOR_NCCL_ERROR", "1:9").run();
    assert!(ended[1].said.contains("unhandled system error"), "{}", ended[1].said);
    for other in [0, 2] {
        let said = &ended[other].said;
        assert!(said.contains("remote process exited") && said.contains("another rank has failed"), "{said}");
    }
}

#[test]
fn a_rank_that_dies_ends_the_others() {
    let Some(job) = Job::emulated("die at step 3", 3) else { return };
    let ended = job.run();
    assert!(!ended[1].well);
    for other in [0, 2] {
        let said = &ended[other].said;
        assert!(
            ended[other].well && (said.contains("remote process exited") || said.contains("is gone")),
            "{said}"
        );
    }
}
