// The table of kernels, filled while the libraries with kernels are loaded.
#include <string.h>

#include <map>

#include "block.h"

namespace emulator {
namespace {
std::map<std::string, Kernel>& kernels() {
    static auto& all = *new std::map<std::string, Kernel>;
    return all;
}
}  // namespace

void register_kernel(const char* name, const char* file, void (*function)(), Invoke invoke, const Parameter* parameters,
                     size_t count) {
    const char* folder = strrchr(file, '/');
    const bool sm90_alone = strstr(folder == nullptr ? file : folder, "_sm90") != nullptr;
    Kernel kernel{name, function, invoke, {parameters, parameters + count}, 0, sm90_alone};
    if (count > 0) kernel.parameter_bytes = parameters[count - 1].offset + parameters[count - 1].size;
    if (kernel.parameter_bytes > MAX_PARAMETER_BYTES)
        fail("%zu bytes of parameters of kernel %s, of %zu at most", kernel.parameter_bytes, name, MAX_PARAMETER_BYTES);
    if (!kernels().insert({name, kernel}).second) fail("two kernels have the name %s", name);
}

Kernel* find_kernel(const char* name, int arch) {
    const auto it = kernels().find(name);
    return it == kernels().end() || (it->second.sm90_alone && arch != 90) ? nullptr : &it->second;
}

size_t max_shared_of_arch(int arch) {
    return static_cast<size_t>(arch == 80 || arch == 87 ? 163 : arch == 90 || arch / 10 == 10 ? 227 : 99) << 10;
}

}  // namespace emulator
