// Monotone choice rules on sixteen scores at once. Relative error below choice_slack.

/// Widens a node's bound over the rounding of the transforms (about 4 units in the last place).
inline constexpr float choice_slack = 1.0F + 2.0e-6F;

/// e^x for x <= 0 (Cephes polynomial); below -87 it stays at e^-87, so it never becomes denormal.
inline Floats exp_nonpositive(Floats x) {
    x = max(x, set1(-87.0F));
    const Floats n = nearest(mul(x, set1(1.44269504088896341F)));
    const Floats r = fma(n, set1(2.12194440e-4F), fma(n, set1(-0.693359375F), x));
    Floats p = fma(set1(1.9875691500e-4F), r, set1(1.3981999507e-3F));
    p = fma(p, r, set1(8.3334519073e-3F));
    p = fma(p, r, set1(4.1665795894e-2F));
    p = fma(p, r, set1(1.6666665459e-1F));
    p = fma(p, r, set1(5.0000001201e-1F));
    return scale(add(fma(p, mul(r, r), r), set1(1.0F)), n);
}

inline Floats sigmoid(Floats x) {
    const Floats e = exp_nonpositive(sub(set1(0.0F), absolute(x)));
    const Floats one = set1(1.0F);
    return div(where_positive(x, one, e), add(one, e));
}

/// log(1 + t) for t in [0, 1] as 2 atanh(t / (2 + t)); the series is exact to float32 there.
inline Floats log1p_unit(Floats t) {
    const Floats s = div(t, add(t, set1(2.0F)));
    const Floats s2 = mul(s, s);
    Floats p = fma(set1(2.0F / 13.0F), s2, set1(2.0F / 11.0F));
    p = fma(p, s2, set1(2.0F / 9.0F));
    p = fma(p, s2, set1(2.0F / 7.0F));
    p = fma(p, s2, set1(2.0F / 5.0F));
    p = fma(p, s2, set1(2.0F / 3.0F));
    return fma(mul(p, s2), s, add(s, s));
}

inline Floats sqrtsoftplus(Floats x) {
    const Floats tail = log1p_unit(exp_nonpositive(sub(set1(0.0F), absolute(x))));
    return sqrt(add(max(x, set1(0.0F)), tail));
}

inline Floats transform(Choice choice, Floats x) {
    if (choice == Choice::sigmoid) {
        return keep_nan(x, sigmoid(x));
    }
    if (choice == Choice::sqrtsoftplus) {
        return keep_nan(x, sqrtsoftplus(x));
    }
    return x;
}

/// The choice score of sixteen experts; `bias` is read only if the rule has one.
inline Floats choose(ChoiceView view, Floats x, const float *bias) {
    const Floats score = transform(view.choice, x);
    return view.biased ? add(score, load(bias)) : score;
}

/// The same for upper bounds: never below the choice score of an expert that the bound covers.
inline Floats choose_bound(ChoiceView view, Floats bound, const float *bias) {
    if (view.choice != Choice::identity) {
        bound = mul(transform(view.choice, bound), set1(choice_slack));
    }
    return view.biased ? add(bound, load(bias)) : bound;
}
