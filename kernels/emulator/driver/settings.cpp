#include "settings.h"

#include <stdlib.h>
#include <string.h>

#include <map>
#include <string>

#include "emulator/types.h"

namespace emulator {
namespace {

uint64_t number(const char* name, uint64_t otherwise) {
    const char* text = getenv(name);
    return text == nullptr || *text == '\0' ? otherwise : strtoull(text, nullptr, 0);
}

const std::string* archs = nullptr;  // instead of EMULATOR_ARCH
bool were_read = false;

struct Failure {
    unsigned long call;
    int code;
};

std::multimap<std::string, Failure> read_failures() {
    std::multimap<std::string, Failure> failures;
    const char* text = getenv("EMULATOR_FAIL");
    std::string rest = text == nullptr ? "" : text;
    while (!rest.empty()) {
        const size_t comma = rest.find(',');
        const std::string item = rest.substr(0, comma);
        rest = comma == std::string::npos ? "" : rest.substr(comma + 1);
        const size_t colon = item.find(':');
        if (colon == std::string::npos) continue;
        const std::string name = item.substr(0, colon);
        char* end = nullptr;
        const unsigned long call = strtoul(item.c_str() + colon + 1, &end, 10);
        const bool allocates = name.find("Alloc") != std::string::npos;
        failures.insert({name, {call, *end == ':' ? atoi(end + 1) : allocates ? 2 : 999}});
    }
    return failures;
}

Settings read_settings() {
    were_read = true;
    Settings s{number("EMULATOR_SEED", 1), static_cast<size_t>(number("EMULATOR_MEMORY", 8ull << 30)),
               static_cast<int>(number("EMULATOR_DRIVER", 13000)), 0, {}, number("EMULATOR_EVEN_TIMES", 0) != 0};
    const char* text = archs == nullptr ? getenv("EMULATOR_ARCH") : archs->c_str();
    std::string rest = text == nullptr || *text == '\0' ? "90" : text;
    int given = 0;
    for (int& arch : s.archs) {
        arch = rest.empty() ? s.archs[given - 1] : atoi(rest.c_str());
        if (rest.empty()) continue;
        given++;
        const size_t comma = rest.find(',');
        rest = comma == std::string::npos ? "" : rest.substr(comma + 1);
    }
    s.devices = static_cast<int>(number("EMULATOR_DEVICES", static_cast<uint64_t>(given)));
    return s;
}

}  // namespace

const Settings& settings() {
    static const Settings all = read_settings();
    return all;
}

int injected_failure(const char* function) {
    static const auto& failures = *new std::multimap<std::string, Failure>(read_failures());
    if (failures.empty()) return 0;
    static auto& calls = *new std::map<std::string, unsigned long>;
    const unsigned long call = ++calls[function];
    const auto range = failures.equal_range(function);
    for (auto it = range.first; it != range.second; ++it)
        if (it->second.call == call) return it->second.code;
    return 0;
}

}  // namespace emulator

extern "C" __attribute__((visibility("default"))) void emulator_set_archs(const char* text) {
    if (emulator::were_read) emulator::fail("the devices' architectures are set after the first call");
    emulator::archs = new std::string(text);
}
