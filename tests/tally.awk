# SPDX-License-Identifier: Apache-2.0
#
# Counts a ctest run for run.sh:  awk -f tally.awk LastTest.log OUTPUT_OF_CTEST
#
# A cmocka program counts as its cases, any other program as one. Output: "skip NAME REASON" for everything that was
# skipped, then "count PASSED FAILED SKIPPED". A run that ran nothing has failed.

FNR == 1 { file++ }

# The log: what each program printed.
file == 1 && /^[0-9]+\/[0-9]+ Test: / { name = $3; inside = 0; next }
file == 1 && /^Output:$/ { inside = 1; next }
file == 1 && /^<end of output>/ { inside = 0; next }
file == 1 && inside && /^\[  PASSED  \] [0-9]+ test/ { cases[name] += $4; next }
file == 1 && inside && /^\[  FAILED  \] [0-9]+ test/ { bad[name] += $4; next }
file == 1 && inside && /^\[  SKIPPED \] [0-9]+ test/ { idle[name] += $4; next }
# The names follow the count; before it the same words mark the case as it runs.
file == 1 && inside && /^\[  SKIPPED \] / { if (idle[name]) print "skip " name ":" $4 " skipped by its program"; next }
file == 1 && inside && NF && !/^---/ { last[name] = $0; next }

# The run: how each program ended.
file == 2 && /^ *[0-9]+\/[0-9]+ Test +#[0-9]+: / {
    match($0, /#[0-9]+: /)
    test = substr($0, RSTART + RLENGTH)
    sub(/ .*/, "", test)
    if (/ Passed +[0-9.]+ sec/) {
        passed += cases[test] ? cases[test] : (idle[test] ? 0 : 1)
        skipped += idle[test]
    } else if (/\*\*\*Skipped/) {
        skipped++
        print "skip " test " " (last[test] != "" ? last[test] : "no reason given")
    } else {
        passed += cases[test]
        failed += bad[test] ? bad[test] : 1
        skipped += idle[test]
    }
}

END {
    if (passed + failed == 0) {
        print "no test ran" > "/dev/stderr"
        failed = 1
    }
    print "count " passed + 0 " " failed + 0 " " skipped + 0
}
