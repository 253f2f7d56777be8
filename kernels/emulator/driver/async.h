// The asynchronous copies of one thread.
#pragma once
#include <stddef.h>

#include <vector>

namespace emulator {

class AsyncCopies {
 public:
    void clear();
    // A copy that is done by the next `wait` that covers it, or at once. Reports what the device cannot do.
    void issue(void* shared, const void* global, int bytes, bool zero_fill, bool at_once);
    void commit();
    void wait(size_t pending_groups);

 private:
    struct Copy {
        void* shared;
        const void* global;
        size_t bytes;
        bool zero;
        void perform() const;
    };
    std::vector<Copy> copies_;        // issued, not done, in order
    std::vector<size_t> group_ends_;  // of the committed groups, in `copies_`
};

}  // namespace emulator
