//! Ranks connected with each other by TCP: for CPUs where no MPI is at hand, and on one machine.

use super::host::Transport;
use crate::{Error, Result, limits};
use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::ops::Range;

/// A connection to every other rank.
pub struct Tcp {
    rank: usize,
    /// By rank; none at the own place.
    peers: Vec<Option<TcpStream>>,
}

impl Tcp {
    /// Over connections to all other ranks, in their order, with none at this rank's place.
    ///
    /// # Errors
    /// A connection that cannot be set up.
    pub fn new(rank: usize, peers: Vec<Option<TcpStream>>) -> Result<Self> {
        for (r, stream) in peers.iter().enumerate() {
            if let Some(stream) = stream {
                let ready = stream.set_nodelay(true).and_then(|()| stream.set_read_timeout(None));
                ready.map_err(|e| lost(r, &e))?;
            }
        }
        Ok(Self { rank, peers })
    }

    /// Sends to and receives from every other rank at once.
    fn exchange<'a>(
        &self,
        send: impl Fn(usize) -> &'a [u8] + Sync,
        mut receive: impl FnMut(usize, &TcpStream) -> Result<()>,
    ) -> Result<()> {
        std::thread::scope(|scope| {
            let mut result = Ok(());
            let mut senders = Vec::new();
            for (r, stream) in self.others() {
                let bytes = send(r);
                let sender = std::thread::Builder::new().spawn_scoped(scope, move || {
                    let mut stream = stream;
                    stream.write_all(bytes).map_err(|e| lost(r, &e))
                });
                match sender {
                    Ok(sender) => senders.push(sender),
                    Err(e) => result = Err(Error::Ranks(limits::refused("a thread that sends", &e))),
                }
            }
            for (r, stream) in self.others() {
                if result.is_ok() {
                    result = receive(r, stream);
                }
            }
            if result.is_err() {
                // Senders may wait for ranks that wait for this one: let them go.
                self.others().for_each(|(_, stream)| _ = stream.shutdown(std::net::Shutdown::Both));
            }
            for sender in senders {
                let sent = sender.join().unwrap_or_else(|_| Err(Error::Ranks("a sender panicked".into())));
                result = result.and(sent);
            }
            result
        })
    }

    fn others(&self) -> impl Iterator<Item = (usize, &TcpStream)> {
        self.peers.iter().enumerate().filter_map(|(r, stream)| Some((r, stream.as_ref()?)))
    }
}

fn lost(rank: usize, error: &std::io::Error) -> Error {
    let why = match error.kind() {
        ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset | ErrorKind::BrokenPipe => {
            "its connection closed".to_owned()
        }
        _ => error.to_string(),
    };
    Error::RankLost { rank, why }
}

impl Transport for Tcp {
    fn rank(&self) -> usize {
        self.rank
    }
    fn world(&self) -> usize {
        self.peers.len()
    }
    fn describe(&self) -> String {
        format!("{} processes over TCP", self.peers.len())
    }

    fn all_to_all(&mut self, send: &[&[u8]], receive: &mut [&mut [u8]]) -> Result<()> {
        self.exchange(|r| send[r], |r, mut stream| stream.read_exact(receive[r]).map_err(|e| lost(r, &e)))
    }

    fn all_gather(&mut self, data: &mut [u8], parts: &[Range<usize>]) -> Result<()> {
        let own = data[parts[self.rank].clone()].to_vec();
        self.exchange(
            |_| &own,
            |r, mut stream| stream.read_exact(&mut data[parts[r].clone()]).map_err(|e| lost(r, &e)),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Collective, Division, HostCollective, Wire};
    use super::*;
    use crate::Backend;
    use crate::cpu::Cpu;
    use crate::cpu::memory::Buffer;
    use std::net::TcpListener;

    /// Connected ranks of one process.
    fn mesh(world: usize) -> Vec<Tcp> {
        let mut peers: Vec<Vec<Option<TcpStream>>> =
            (0..world).map(|_| (0..world).map(|_| None).collect()).collect();
        for (a, b) in (0..world).flat_map(|a| (a + 1..world).map(move |b| (a, b))) {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let one = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            peers[a][b] = Some(one);
            peers[b][a] = Some(listener.accept().unwrap().0);
        }
        peers.into_iter().enumerate().map(|(rank, peers)| Tcp::new(rank, peers).unwrap()).collect()
    }

    /// Runs every rank on a thread.
    fn on_all<R: Send>(world: usize, f: impl Fn(HostCollective<f32>) -> R + Sync) -> Vec<R> {
        std::thread::scope(|scope| {
            let ranks = mesh(world).into_iter().map(|tcp| HostCollective::new(Box::new(tcp)).unwrap());
            let threads: Vec<_> = ranks.map(|rank| scope.spawn(|| f(rank))).collect();
            threads.into_iter().map(|t| t.join().unwrap()).collect()
        })
    }

    /// Rank r's gradient of element i: different magnitudes, so that the order of a sum shows.
    fn gradient(rank: usize, i: usize) -> f32 {
        (1.0 + i as f32 * 0.37).sin() * [1.0, 1e-6, 3e4, 0.1][rank % 4]
    }

    const LEN: usize = 3 << 20;

    fn reduced(world: usize, sharded: bool, wire: Wire) -> Vec<Vec<f32>> {
        let division = match sharded {
            true => Division::sharded(LEN, world, 1 << 14),
            false => Division::Replicated { len: LEN },
        };
        on_all(world, |mut ranks| {
            let backend = Cpu::<f32>::new();
            let rank = Collective::<Cpu<f32>>::rank(&ranks);
            let mut grads: Buffer<f32> = backend.zeros("gradients", LEN).unwrap();
            grads.as_mut_slice().iter_mut().enumerate().for_each(|(i, g)| *g = gradient(rank, i));
            for bucket in [2 << 20..LEN, 12_345..2 << 20, 0..12_345] {
                ranks.begin_reduce(&backend, &grads, bucket, &division, wire).unwrap();
            }
            ranks.finish_reduce(&backend, &mut grads).unwrap();
            let own = division.of(rank);
            if sharded {
                grads.as_mut_slice()[..own.start].fill(f32::NAN);
                grads.as_mut_slice()[own.end..].fill(f32::NAN);
                ranks.gather_weights(&backend, &mut grads, &division, &[]).unwrap();
            }
            grads.as_slice().to_vec()
        })
    }

    #[test]
    fn sums_are_added_in_the_order_of_ranks_whoever_owns_them() {
        for world in [1, 2, 3, 4] {
            let want: Vec<f32> =
                (0..LEN).map(|i| (0..world).fold(0.0, |sum, r| sum + gradient(r, i))).collect();
            for sharded in [false, true] {
                assert!(
                    reduced(world, sharded, Wire::Full).iter().all(|got| *got == want),
                    "{world} {sharded}"
                );
            }
        }
    }

    #[test]
    fn bf16_on_the_wire_is_off_by_its_rounding_only_and_the_same_on_all_ranks() {
        let full = reduced(2, true, Wire::Full);
        let (a, b) = (reduced(2, true, Wire::Bf16), reduced(2, false, Wire::Bf16));
        assert!(a.iter().chain(&b).all(|got| *got == a[0]));
        for (i, (got, want)) in a[0].iter().zip(&full[0]).enumerate() {
            let bound = (0..2).map(|r| gradient(r, i).abs()).sum::<f32>() / 256.0;
            assert!((got - want).abs() <= bound, "element {i}");
        }
        assert!(a[0] != full[0]);
    }

    #[test]
    fn sums_and_broadcasts_reach_everyone() {
        let got = on_all(3, |mut ranks| {
            let rank = Collective::<Cpu<f32>>::rank(&ranks);
            let mut sums = [rank as f64, 1.0];
            Collective::<Cpu<f32>>::sum_host(&mut ranks, &mut sums).unwrap();
            let mut bytes = [rank as u8; 5];
            Collective::<Cpu<f32>>::gather_bytes(&mut ranks, &mut bytes, &[0..2, 2..2, 2..4]).unwrap();
            let mut weights = Cpu::<f32>::new().weights(7).unwrap();
            weights.as_mut_slice().fill(rank as f32);
            let division = Division::Sharded([0..3, 3..3, 3..7].into());
            ranks.gather_weights(&Cpu::new(), &mut weights, &division, &[]).unwrap();
            (sums, bytes, weights.as_slice().to_vec())
        });
        let weights = vec![0.0, 0.0, 0.0, 2.0, 2.0, 2.0, 2.0];
        assert!(got.iter().all(|g| g.0 == [3.0, 3.0] && g.1[..4] == [0, 0, 2, 2] && g.2 == weights));
    }

    #[test]
    fn tables_come_to_the_first_and_go_from_it() {
        let parts = [0..1_300_001, 1_300_001..1_300_001, 1_300_001..LEN];
        let got = on_all(3, |mut ranks| {
            let (rank, backend) = (Collective::<Cpu<f32>>::rank(&ranks), Cpu::<f32>::new());
            let own: Vec<f32> = parts[rank].clone().map(|i| gradient(3, i)).collect();
            let mut whole = vec![f32::NAN; if rank == 0 { LEN } else { 0 }];
            ranks.gather_to_first(&backend, &own, &parts, &mut whole).unwrap();
            let mut sent = vec![if rank == 0 { 7.0 } else { f32::NAN }; 5];
            ranks.send_from_first(&backend, &mut sent).unwrap();
            (whole, sent)
        });
        let want: Vec<f32> = (0..LEN).map(|i| gradient(3, i)).collect();
        assert!(got[0].0 == want && got.iter().all(|g| g.1 == [7.0; 5]));
    }

    #[test]
    fn own_work_ends_where_others_are_waited_for() {
        let slow = std::time::Duration::from_millis(60);
        let seconds = on_all(2, |mut ranks| {
            let (rank, backend) = (Collective::<Cpu<f32>>::rank(&ranks), Cpu::<f32>::new());
            let mut grads: Buffer<f32> = backend.zeros("gradients", 10).unwrap();
            let division = Division::Replicated { len: 10 };
            ranks.begin_work(&backend).unwrap();
            if rank == 1 {
                std::thread::sleep(slow);
            }
            ranks.begin_reduce(&backend, &grads, 0..10, &division, Wire::Full).unwrap();
            ranks.finish_reduce(&backend, &mut grads).unwrap();
            Collective::<Cpu<f32>>::work_seconds(&mut ranks).unwrap()
        });
        assert!(seconds[1] >= slow.as_secs_f64() && seconds[0] < 0.5 * seconds[1], "{seconds:?}");
    }

    /// Rank 1 comes 60 ms late. Whether rank 0 works meanwhile or waits, its gradients are on their way as long.
    #[test]
    fn what_is_on_its_way_beside_work_is_not_exposed() {
        let late = std::time::Duration::from_millis(60);
        let way = |works: std::time::Duration| {
            let travels = on_all(2, |mut ranks| {
                let (rank, backend) = (Collective::<Cpu<f32>>::rank(&ranks), Cpu::<f32>::new());
                let mut grads: Buffer<f32> = backend.zeros("gradients", 1000).unwrap();
                let division = Division::sharded(1000, 2, 1);
                Collective::<Cpu<f32>>::time_travel(&mut ranks, true).unwrap();
                if rank == 1 {
                    std::thread::sleep(late);
                }
                ranks.begin_reduce(&backend, &grads, 0..1000, &division, Wire::Full).unwrap();
                if rank == 0 {
                    std::thread::sleep(works);
                }
                ranks.finish_reduce(&backend, &mut grads).unwrap();
                ranks.gather_weights(&backend, &mut grads, &division, &[]).unwrap();
                Collective::<Cpu<f32>>::travel(&mut ranks).unwrap()
            });
            assert!(travels.iter().all(|t| t.weights > 0.0), "{travels:?}");
            travels[0]
        };
        let (waits, works) = (way(std::time::Duration::ZERO), way(4 * late));
        let late = late.as_secs_f64();
        assert!(waits.gradients > 0.8 * late && waits.exposed > 0.8 * late, "{waits:?}");
        assert!(works.gradients > 0.8 * late && works.exposed < 0.5 * works.gradients, "{works:?}");
    }

    #[test]
    fn a_rank_that_is_gone_is_named() {
        let errors = on_all(3, |mut ranks| {
            if Collective::<Cpu<f32>>::rank(&ranks) == 1 {
                return String::new();
            }
            Collective::<Cpu<f32>>::sum_host(&mut ranks, &mut [1.0; 1000]).unwrap_err().to_string()
        });
        assert!(errors[0].starts_with("rank 1") || errors[2].starts_with("rank 1"), "{errors:?}");
        assert!(
            errors[0].contains("connection closed") && errors[2].contains("connection closed"),
            "{errors:?}"
        );
    }
}
