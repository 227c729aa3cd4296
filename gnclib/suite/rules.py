"""The rules of the claims, and the verdicts that they give.

A rule is a function of the evidence, named like its claim in claims.toml ("F1-steps": f1_steps) unless that names
another one. It returns True ("holds"), False ("does not hold") or a verdict of its own. A caveat names a narrower range
in which the sentence is true. It never covers a failure that is larger than the noise which the evidence states.
"""

from collections.abc import Iterable

import numpy as np

#: from the most to the least favourable; an identity is true by algebra, and checked to rounding
VERDICTS = "verified identity", "holds", "holds with caveat", "undecided", "does not hold"
IDENTITY, HOLDS, CAVEAT, UNDECIDED, FAILS = VERDICTS


def graded(holds: bool, caveat: bool) -> str:
    """`HOLDS`, else `CAVEAT` if the sentence is true in the narrower range of `caveat`, else `FAILS`."""
    return HOLDS if holds else CAVEAT if caveat else FAILS


def beyond_noise(margins: Iterable[float], noise: Iterable[float]) -> str:
    """Verdict on "every margin is positive", where a margin up to its `noise` happens by chance.

    All beyond the noise: it holds. One beyond it on the wrong side: it does not. Else a caveat if some are beyond it
    and the others at least positive; else undecided.
    """
    pairs = list(zip(margins, noise, strict=True))
    if any(margin < -limit for margin, limit in pairs):
        return FAILS
    shown = [margin > limit for margin, limit in pairs]
    if all(shown):
        return HOLDS
    return CAVEAT if any(shown) and all(margin > 0 for margin, _ in pairs) else UNDECIDED


LEAST_IMAGES = 24  #: no verdict on a mean over images from fewer of them


def from_enough(images: int, verdict: bool | str) -> bool | str:
    """The verdict, or `UNDECIDED` with fewer than :data:`LEAST_IMAGES` images."""
    return verdict if images >= LEAST_IMAGES else UNDECIDED


def t2_2(e):
    return e.mixtures >= 100 and e.smallest_scaled_eigenvalue >= 0


def t2_2_sufficient(e):
    return e.points_where_S_holds > 1000 and e.smallest_scaled_eigenvalue >= 0


def c2_3(e):
    return e.largest_t_star_over_diam2 <= 1 and e.smallest_scaled_eigenvalue >= 0


def t2_2_gradual(e):
    return e.valleys_at_0 >= 2 and e.largest_drop_at_once == 1 and e.increases == 0 and e.convex_from_t > 0


def a1_tweedie(e):
    return e.largest_difference < 1e-9


def a1_one_step(e):
    return e.spread_at_t_100 < 0.01 and e.distance_to_mean_at_t_100 < 0.01


def a1_arrive(e):
    return e.figure1_share == 1 > e.gradient_descent_share


def f1_left(e):
    return e.valleys_at_0 >= 2 and e.lowest_at_small_t < 0 < e.lowest_at_large_t


def f1_steps(e):
    falls = e.increases_from_t_star_to_t_bar == 0
    return graded(
        falls and e.increases_beyond_t_bar == 0 and e.N_at_1000 < e.N_at_t_star,
        falls and e.N_at_t_bar < e.N_at_t_star,
    )


def f1_threshold(e):
    return e.lowest_at_small_t < 0 and e.sign_changes == 1 and e.t_star < e.t_bar


def p_splines(e):
    return max(e.partition_of_unity, e.error_of_identity, e.error_of_quadratic) < 1e-12


def p_smooth(e):
    jumps = (e.jump_of_derivative_0, e.jump_of_derivative_1, e.jump_of_derivative_2, e.jump_of_derivative_3)
    return max(jumps) < 1e-7 and e.jump_of_derivative_4 > 0.5


def j_split(e):
    return e.relative_difference < 1e-12


def j_denoising(e):
    return e.largest_deviation < 1e-8 and e.spread_of_losses > 0.1


def j_implicit(e):
    return e.spread_of_difference < 0.01 * e.spread_of_losses


def j_recovers(e):
    limit = 1.2 * e.worst_tau_explicit
    return graded(e.worst_tau_largest_lambda < limit, e.worst_tau_smallest_lambda < limit)


def j_joint(e):
    return graded(e.error_of_restored < 0.05, e.error_of_restored_in_middle_half < 0.05)


def i_lipschitz(e):
    largest = max(e.each("largest_R_"))
    return graded(largest <= 1.25, largest < 2)


def i_joint_descends(e):
    share = e.share_of_steps_that_decrease
    return graded(share == 1, share > 0.9 and e.largest_rise < 0.01 * e.total_fall)


def i_palm(e):
    behind = e.final_minus_final_of_algorithm_2 / e.total_fall
    return e.largest_rise < 1e-4 and graded(behind < 0.02, behind < 0.1)


def i_mmse(e):
    length = e.largest_deviation_of_factor < 0.05 and 0.9 < e.best_told_sigma_over_true < 1.1
    return e.smallest_gain_db > 0 and graded(length and e.best_other_prior_above_db < 0.1, length)


def i_learned(e):
    return from_enough(e.images, beyond_noise([e.above_best_predefined_db], [2 * e.standard_error_db]))


def i_few(e):
    return graded(e.lost_with_4_pairs_db < 0.05, e.lost_with_16_pairs_db < 0.05)


def i_finetune(e):
    return from_enough(e.images, beyond_noise([e.gain_db], [e.two_standard_errors_db]))


def r_convex(e):
    seen = [*e.each("convex_at_clean_from_"), *e.each("segments_from_")]
    return graded(max(e.each("convex_from_")) <= e.largest_sigma, max(seen) <= e.largest_sigma)


def f2_quadratic(e):
    red, blue = e.each("median_red_"), e.each("median_blue_")
    closer = all(r < b for r, b in zip(red, blue, strict=True))
    parabolas = min(e.each("share_parabolas_"))  # close to one, bent upwards and no straight line
    return graded(parabolas >= 0.95 and closer, parabolas > 0.5)


def f2_nonconvex(e):
    nearly = max(e.each("median_gap_red_")) < 0.02 and max(e.each("worst_gap_red_")) < 0.1
    return min(e.each("nonconvex_blue_")) > 0.5 and graded(min(e.each("convex_red_")) == 1, nearly)


def f2_linear(e):
    red, blue = e.each("red_"), e.each("blue_")
    falls = all(r < b for r, b in zip(red, blue, strict=True))
    return graded(max(red) < 0.1 and falls, falls)


def f2_simpler(e):
    (one, two, three), (s1, s2, s3) = (
        [np.array(e.each(f"{name}_R_{k}_at_")) for k in (1, 2, 3)] for name in ("minima", "error")
    )
    return beyond_noise([*(one - two), *(two - three)], [*(2 * np.hypot(s1, s2)), *(2 * np.hypot(s2, s3))])


def f3_similar(e):
    def alike(pair, steps=""):
        apart = (max(e.each(f"{pair}_{kind}_apart_{steps}")) for kind in ("psnr", "energy"))
        return all(found < limit for found, limit in zip(apart, (0.5, 0.1), strict=True))

    # the preconditioner read literally, after 64 and 512 steps; with a caveat after 512 only, or ours
    late = alike("linear_48n", "512_") or alike("logarithmic_2n")
    return from_enough(e.images, graded(alike("linear_48n"), late))


def f3_attain(e):
    lag = max(best - last for best, last in zip(e.each("best_rate_"), e.each("rate_"), strict=True))
    return from_enough(e.images, lag < 0.1)  # two standard errors of a rate over 68 images


def f3_early(e):
    lost, gap = min(e.each("psnr_lost_")), min(e.each("energy_gap_at_best_psnr_"))
    return graded(e.images >= 68 and lost > 0.1 and gap > e.tolerance, lost > 0.1)


def f3_inpainting(e):
    pairs = list(zip(e.each("inpaint_"), e.each("denoise_"), strict=True))
    half = all(inpaint < 0.5 * denoise for inpaint, denoise in pairs)
    return graded(e.images >= 68 and half, all(inpaint < denoise for inpaint, denoise in pairs))


def f4_energy(e):
    worst, best = (max(gap, e.joint_gap) for gap in (e.gnc_gap_of_the_worst_start, e.gnc_gap))
    return from_enough(e.images, graded(worst < 0.02, best < 0.05))


def f4_learned_energy(e):
    far = e.learned_gap > 0.02 and e.learned_gap > 2 * e.joint_gap
    return from_enough(e.images, graded(far, e.learned_gap > e.joint_gap))


def all_above(e):
    return beyond_noise(e.each("above_"), e.each("two_standard_errors_"))


def f4_last_step(e):
    last = [e.best_step_of_the_photograph == e.last_step, e.best_step_of_the_mean_of_68 == e.last_step]
    return graded(all(last), last[1])


def g_ddim(e):
    descends = e.smallest_curvature_at_the_start > 0 and min(e.each("share_of_steps_that_descend_")) == 1
    return graded(descends and e.share_at_the_minimum_ddim == 1, descends)


def i_near(e):
    return graded(max(e.each("distance_from_threshold_")) < 0.1, max(e.each("distance_at_largest_t_")) < 0.1)


def p_wiener(e):
    return e.difference_to_wiener < 1e-6 and e.difference_of_KtK < 1e-10


def p_gain(e):
    return beyond_noise([e.smallest_gain_in_standard_errors], [2])


def j_gap(e):
    return min(e.slope_at_tau_max, -e.slope_at_tau_min) > 5 * e.typical_true_slope


def j_boundary(e):
    return e.relative_difference_from_explicit < 1e-4


def j_identity(e):
    return e.largest_mean < 1e-9 * e.typical_size


def j_calibrated(e):
    return beyond_noise([0.05 - e.largest_mean], [2 * e.largest_standard_error])


def a_lambda(e):
    lost = e.calibration_error_without > 2 * e.calibration_error_recipe
    change = e.psnr_change_at_10_lambda
    return lost and graded(change < -e.threshold_dB, change <= e.threshold_dB)


def a_boundary(e):
    return (
        e.largest_psnr_difference <= e.psnr_threshold
        and e.largest_calibration_difference <= e.calibration_threshold
        and e.largest_joint_psnr_difference <= e.joint_psnr_between_seeds
    )


def a_dct(e):
    return beyond_noise([-change for change in e.each("change_at_")], e.each("threshold_at_"))


def a_nodes(e):
    if e.psnr_change_nodes_21 > e.threshold_dB:
        return FAILS
    return beyond_noise([-e.psnr_change_nodes_5], [e.threshold_dB])


def a_smooth(e):
    if e.psnr_change_without >= e.threshold_dB:
        return FAILS
    return HOLDS if e.eigenvalue_recipe > e.eigenvalue_without else UNDECIDED  # the worst seed, and the best


def a_warm(e):
    return beyond_noise([-e.psnr_change_cold], [e.threshold_dB])


def a_deep(e):
    changes = [e.psnr_change_lambda, e.psnr_change_magnitudes, e.psnr_change_dilation]
    return beyond_noise(changes, [e.threshold_dB] * len(changes))


def a_departures(e):
    costs_nothing = min(e.each("psnr_change_")) > -e.limit_db
    return costs_nothing and e.eigenvalue_rise_damping == max(0.0, *e.each("eigenvalue_rise_"))


def x_popoviciu(e):
    return e.smallest_scaled_eigenvalue >= -1e-12 and e.largest_ratio <= 0.25 + 1e-9


def x_tight(e):
    return max(e.largest_error_two_components, e.largest_relative_error_two_points) < 1e-9


def x_certificate(e):
    window = e.proved_on_the_window and e.bound_on_the_window > 0 > e.hessian_at_witness_in_the_window
    line = e.proved_on_the_line and e.bound_on_the_line > 0 > e.hessian_at_witness_on_the_line
    narrow = max(e.width_on_the_window, e.width_on_the_line) < 1.1e-6
    sound = e.false_statement_on_a_window_refused and e.false_statement_on_the_line_refused
    return window and line and min(e.each("bound_on_the_tail_")) > 0 and narrow and sound


def x_once(e):
    return e.non_convex_at_first >= 1 and e.most_sign_changes_on_the_line <= 1


def x_outside(e):
    window = e.t >= e.t_bar_on_X and e.min_hessian_on_X > 0
    return window and e.min_hessian_on_the_line < 0 and e.attained_at_distance > 0.5


def x_vp(e):
    return abs(e.by_bisection - e.by_formula) < 1e-8 and e.of_the_theorem < e.by_formula


def x_edge(e):
    triangle = max(abs(e.triangle_below - 0.25), abs(e.triangle_above - 0.25)) < 1e-9
    return triangle and e.largest_eigenvalue_times_t < 0 and e.search_between_the_bounds


def x_patches(e):
    cube = e.cube_over_popoviciu_largest < 0.5
    return e.edge_over_popoviciu_smallest > 0.7 and cube and e.smallest_edge_margin > 1e-6


def x_ddim(e):
    shares = e.largest_error_of_ddim_shares < 0.03 and e.gnc_share_in_deepest_valley == 1
    return e.difference_to_denoise_and_renoise < 1e-10 and shares


def x_control(e):
    cheaper = e.evaluations_to_99_percent_gnc < e.evaluations_to_99_percent_restarts
    return e.gradient_descent_best_arrives < e.gnc_arrives and cheaper


def x_failure(e):
    missed = e.distance_to_global_minimiser > 0.5 and e.energy_too_high_by > 0.1
    return missed and e.agreement_with_cusp_line > 0.9


def x_attain(e):
    harder = e.gnc_few_components > e.gnc_many_components
    return e.gnc > e.no_smoothing + 0.1 and harder and e.cells_where_gnc_is_worse <= 0.1 * e.cells


def x_far(e):
    wrong = e.noise_at_small_t < e.photograph_at_small_t - 0.5
    right = e.noise_at_large_t > e.photograph_at_large_t + 0.5
    return wrong and right and e.flow_db > e.without_graduation_db + 10


def x_deep(e):
    loses = e.smallest_loss_of_R3_db > 1 and e.largest_loss_of_R1_db < 0.5
    return graded(loses, e.smallest_loss_of_R3_db > e.largest_loss_of_R1_db)


def x_problems(e):
    gains = [*e.each("standard_errors_above_tv_"), *e.each("standard_errors_above_no_gnc_")]
    return beyond_noise(gains, [2] * len(gains))


def x_intervals(e):
    covered, formula = e.each("covered_percent_"), e.each("by_the_formula_percent_")
    return 88 <= min(covered) and max(covered) <= 92 and max(formula) < 88


def x_sure(e):
    within = [0.02 - abs(ratio - 1) for ratio in e.each("ratio_")]
    return min(e.each("correlation_")) >= 0.95 and beyond_noise(within, [2 * s for s in e.each("error_")])


def x_entropy(e):
    far = max(e.each("from_0_1_bits_")) <= 0.02
    return graded(far and max(e.each("largest_bits_")) <= 0.02, far)


def x_ranks(e):
    return from_enough(e.images, graded(min(e.each("share_")) >= 0.95, min(e.each("share_unlike_")) >= 0.95))


def x_expressive(e):
    better = beyond_noise(e.each("above_R_3_db_"), e.each("two_standard_errors_db_"))
    return e.proved_convex_from <= 4 and e.smallest_where_nothing_is_proved < 0 and better
