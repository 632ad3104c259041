# What is installed beside the programs and the library (those install themselves where they are built).
set(MLACAT_SYSTEMD_UNIT_DIR lib/systemd/system CACHE STRING "where the systemd units go, below the prefix")
set(MLACAT_SYSUSERS_DIR lib/sysusers.d CACHE STRING "where the sysusers.d file goes, below the prefix")

# The units name the daemon and its README by their full paths, which are the prefix's.
foreach(name mlacatd@.service mlacatd@.socket)
    file(READ deploy/systemd/${name} unit)
    string(REPLACE "=/usr/bin/mlacatd" "=${CMAKE_INSTALL_FULL_BINDIR}/mlacatd" unit "${unit}")
    string(REPLACE "=file:///usr/share/doc/mlacat" "=file://${CMAKE_INSTALL_FULL_DOCDIR}" unit "${unit}")
    file(WRITE ${PROJECT_BINARY_DIR}/deploy/${name} "${unit}")
    install(FILES ${PROJECT_BINARY_DIR}/deploy/${name} DESTINATION ${MLACAT_SYSTEMD_UNIT_DIR})
endforeach()
install(FILES deploy/systemd/default-socket.conf
        DESTINATION ${MLACAT_SYSTEMD_UNIT_DIR}/mlacatd@host.socket.d)
install(FILES deploy/systemd/sysusers.conf RENAME mlacat.conf DESTINATION ${MLACAT_SYSUSERS_DIR})
install(FILES README.md CHANGELOG.md CONTRIBUTING.md LICENSE DESTINATION ${CMAKE_INSTALL_DOCDIR})
install(DIRECTORY docs DESTINATION ${CMAKE_INSTALL_DOCDIR})
install(FILES deploy/mlacatd.conf DESTINATION ${CMAKE_INSTALL_DOCDIR}/deploy)
