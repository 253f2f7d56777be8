// A third of the blocks has units that work at once, a third such that work as late as can be.
#include "beside.h"

#include <utility>
#include <vector>

#include "emulator/runtime.h"
#include "threads.h"

namespace emulator {
namespace {

enum class Pace { at_once, drawn, late };

struct Piece {
    Thread* thread;  // whose work it is
    std::function<void()> work;
};

Pace pace = Pace::drawn;
auto& pieces = *new std::vector<Piece>;

void perform(Piece piece) {
    Thread* running = current;
    current = piece.thread;
    piece.work();
    current = running;
}

}  // namespace

void start_beside() {
    pieces.clear();
    pace = static_cast<Pace>(block_random().below(3));
}

bool works_beside() { return !pieces.empty(); }

void beside(std::function<void()> work) {
    const bool now = pace == Pace::at_once || (pace == Pace::drawn && block_random().below(4) == 0);
    if (now)
        work();
    else
        pieces.push_back({current, std::move(work)});
}

void sometimes_beside() {
    if (pace == Pace::drawn && block_random().below(16) == 0) one_beside();
}

bool one_beside() {
    if (pieces.empty()) return false;
    const size_t at = block_random().below(static_cast<uint32_t>(pieces.size()));
    Piece piece = std::move(pieces[at]);
    pieces[at] = std::move(pieces.back());
    pieces.pop_back();
    perform(std::move(piece));
    return true;
}

}  // namespace emulator
