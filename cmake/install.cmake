# What is installed beside the programs and the library (those install themselves where they are built).
set(MLACAT_SYSTEMD_UNIT_DIR lib/systemd/system CACHE STRING "where the systemd units go, below the prefix")
set(MLACAT_SYSUSERS_DIR lib/sysusers.d CACHE STRING "where the sysusers.d file goes, below the prefix")

# The unit names the daemon by its full path, which is the prefix's.
file(READ deploy/systemd/mlacatd@.service unit)
string(REPLACE "=/usr/bin/mlacatd" "=${CMAKE_INSTALL_FULL_BINDIR}/mlacatd" unit "${unit}")
file(WRITE ${PROJECT_BINARY_DIR}/deploy/mlacatd@.service "${unit}")

install(FILES ${PROJECT_BINARY_DIR}/deploy/mlacatd@.service deploy/systemd/mlacatd@.socket
        DESTINATION ${MLACAT_SYSTEMD_UNIT_DIR})
install(FILES deploy/systemd/default-socket.conf
        DESTINATION ${MLACAT_SYSTEMD_UNIT_DIR}/mlacatd@host.socket.d)
install(FILES deploy/systemd/sysusers.conf RENAME mlacat.conf DESTINATION ${MLACAT_SYSUSERS_DIR})
install(FILES README.md CHANGELOG.md LICENSE DESTINATION ${CMAKE_INSTALL_DOCDIR})
