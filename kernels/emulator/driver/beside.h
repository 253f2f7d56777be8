// Work of the units that run beside the threads of a block: when it is done is drawn.
#pragma once

namespace emulator {

// Draws how eager the block's units are.
void start_beside();
// Whether work is left.
bool works_beside();
// Now and then does some of it.
void sometimes_beside();
// Does one piece, drawn; false if there is none.
bool one_beside();

}  // namespace emulator
