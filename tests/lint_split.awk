# SPDX-License-Identifier: Apache-2.0
#
# Splits C sources for lint.sh. Each input line gives up to two output lines, tab-separated:
#     code     FILE LINE text without comments, strings emptied
#     comment  FILE LINE text of the comments on this line
# with -v functions=1 instead: "FILE LINE length" for each function body (Linux braces: both in column one).

FNR == 1 { in_comment = 0; body = 0 }

functions {
    if ($0 == "{") body = FNR
    if ($0 ~ /^}/ && body) { print FILENAME "\t" body "\t" FNR - body - 1; body = 0 }
    next
}

{
    rest = $0; code = ""; comment = ""
    while (rest != "") {
        if (in_comment) {
            end = index(rest, "*/")
            if (!end) { comment = comment rest; break }
            comment = comment substr(rest, 1, end - 1) " "
            rest = substr(rest, end + 2)
            in_comment = 0
        } else if (match(rest, /\/\*|\/\/|"|'/)) {
            mark = substr(rest, RSTART, RLENGTH)
            code = code substr(rest, 1, RSTART - 1)
            rest = substr(rest, RSTART + RLENGTH)
            if (mark == "/*") in_comment = 1
            else if (mark == "//") { comment = comment rest; break }
            else {
                # To the end of the string or character constant; a backslash takes the next character with it.
                code = code mark mark
                while (rest != "" && substr(rest, 1, 1) != mark)
                    rest = substr(rest, substr(rest, 1, 1) == "\\" ? 3 : 2)
                rest = substr(rest, 2)
            }
        } else { code = code rest; break }
    }
    if (code ~ /[^ \t]/) print "code\t" FILENAME "\t" FNR "\t" code
    if (comment ~ /[^ \t*]/) print "comment\t" FILENAME "\t" FNR "\t" comment
}
