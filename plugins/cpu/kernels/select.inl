// Keeping the best C of a stream of scores: a threshold filters, a branch-free rank sort decides.

inline constexpr std::size_t rank_limit = 128;
/// Entries beyond C that may wait for the next pruning.
inline constexpr std::size_t waiting_limit = 48;
/// Largest C for which the first chunk of a scan gets a threshold from its lane maxima.
inline constexpr std::size_t lane_count_limit = 64;

inline std::size_t bits_set(Mask m) {
    return static_cast<std::size_t>(__builtin_popcount(m));
}

/// Appends the valid lanes that are not below the threshold; NaN passes (it may be needed to fill
/// C).
inline void accept(Selection &s, Floats scores, const std::int32_t *ids, Mask valid) {
    const Mask m = not_less(scores, set1(s.threshold)) & valid;
    if (m != 0) {
        compress(s.scores + s.held, m, scores);
        compress(s.ids + s.held, m, load(ids));
        s.held += bits_set(m);
    }
}

/// An entry's rank is the number of entries before it: no data-dependent branch, O(held^2 / 16).
inline void rank_sort(Selection &s) {
    const std::size_t blocks = (s.held + lanes - 1) / lanes;
    for (std::size_t i = s.held; i < blocks * lanes; ++i) {
        s.scores[i] = __builtin_nanf("");
        s.ids[i] = INT32_MAX;
    }
    alignas(64) std::int32_t keys[rank_limit];
    for (std::size_t b = 0; b < blocks; ++b) {
        store(keys + b * lanes, ordered(load(s.scores + b * lanes)));
    }
    float scores[rank_limit];
    std::int32_t ids[rank_limit];
    for (std::size_t i = 0; i < s.held; ++i) {
        const Ints key = set1(keys[i]);
        const Ints id = set1(s.ids[i]);
        std::size_t rank = 0;
        for (std::size_t b = 0; b < blocks; ++b) {
            const Ints other = load(keys + b * lanes);
            const Mask same = equal(other, key) & greater(id, load(s.ids + b * lanes));
            rank += bits_set(greater(other, key) | same);
        }
        scores[rank] = s.scores[i];
        ids[rank] = s.ids[i];
    }
    s.held = s.held < s.count ? s.held : s.count;
    __builtin_memcpy(s.scores, scores, s.held * sizeof(float));
    __builtin_memcpy(s.ids, ids, s.held * sizeof(std::int32_t));
}

void finish(Selection &s) {
    if (s.held <= rank_limit) {
        rank_sort(s);
    } else {
        sort_and_cut(s);
    }
}

/// Cuts to C entries and raises the threshold to the worst of them.
inline void prune(Selection &s) {
    finish(s);
    if (s.held == s.count && s.scores[s.count - 1] > s.threshold) {
        s.threshold = s.scores[s.count - 1];
    }
}

/// `a` if the condition holds, else -inf; written so that no compiler makes it a branch, which
/// would be mispredicted half of the time.
inline float if_true(bool condition, float a) {
    constexpr std::uint32_t lowest = 0xFF800000U;
    const std::uint32_t mask = 0U - static_cast<std::uint32_t>(condition);
    return __builtin_bit_cast(float,
                              (__builtin_bit_cast(std::uint32_t, a) & mask) | (lowest & ~mask));
}

/// The C-th largest of disjoint groups' maxima is not above the C-th best score: a first threshold.
inline void threshold_from_maxima(Selection &s, const float *maxima, std::size_t groups) {
    float threshold = s.threshold;
    for (std::size_t i = 0; i < groups * lanes; ++i) {
        const Floats value = set1(maxima[i]);
        std::size_t above = 0;
        for (std::size_t g = 0; g < groups; ++g) {
            above += bits_set(not_less(load(maxima + g * lanes), value));
        }
        const float raised = if_true(above >= s.count, maxima[i]);
        threshold = raised > threshold ? raised : threshold;
    }
    s.threshold = threshold;
}

/// Sorted insertion into a full selection: cheaper than a sort where few entries arrive.
inline void insert(Selection &s, float score, std::int32_t id) {
    std::size_t i = s.count - 1;
    if (!(score > s.scores[i] || (score == s.scores[i] && id < s.ids[i]) ||
          s.scores[i] != s.scores[i])) {
        return;
    }
    while (i > 0 && (score > s.scores[i - 1] || (score == s.scores[i - 1] && id < s.ids[i - 1]))) {
        s.scores[i] = s.scores[i - 1];
        s.ids[i] = s.ids[i - 1];
        --i;
    }
    s.scores[i] = score;
    s.ids[i] = id;
}
