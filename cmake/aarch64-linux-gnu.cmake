# Cross-build for aarch64 with Debian's gcc-aarch64-linux-gnu:
#
#     cmake -S . -B build/aarch64 -G Ninja --toolchain cmake/aarch64-linux-gnu.cmake [-DMLACAT_SYSROOT=DIR]
#
# The libraries come from the foreign-architecture packages of the build machine (dpkg --add-architecture arm64;
# apt-get install libuv1-dev:arm64 ...), or, without touching the machine, from a folder made by
# tests/cross/sysroot.sh and named by MLACAT_SYSROOT. Tests run under qemu-user where it is installed.
set(CMAKE_SYSTEM_NAME Linux)
set(CMAKE_SYSTEM_PROCESSOR aarch64)
set(CMAKE_C_COMPILER aarch64-linux-gnu-gcc)
set(CMAKE_CXX_COMPILER aarch64-linux-gnu-g++)

set(MLACAT_SYSROOT "" CACHE PATH "folder with the aarch64 libraries; empty: those of the build machine")
list(APPEND CMAKE_TRY_COMPILE_PLATFORM_VARIABLES MLACAT_SYSROOT)

# pkg-config must find the foreign .pc files and only those. -isystem and not a compiler sysroot: the C library is the
# compiler's own (/usr/aarch64-linux-gnu).
set(ENV{PKG_CONFIG_DIR} "")
set(ENV{PKG_CONFIG_LIBDIR} "${MLACAT_SYSROOT}/usr/lib/aarch64-linux-gnu/pkgconfig")
set(ENV{PKG_CONFIG_SYSROOT_DIR} "${MLACAT_SYSROOT}")
set(qemu_libraries /usr/aarch64-linux-gnu)
if(MLACAT_SYSROOT)
    set(CMAKE_FIND_ROOT_PATH "${MLACAT_SYSROOT}" /usr/aarch64-linux-gnu)
    set(CMAKE_EXE_LINKER_FLAGS_INIT "-Wl,-rpath-link,${MLACAT_SYSROOT}/usr/lib/aarch64-linux-gnu")
    set(CMAKE_SHARED_LINKER_FLAGS_INIT "${CMAKE_EXE_LINKER_FLAGS_INIT}")
    set(qemu_environment -E "LD_LIBRARY_PATH=${MLACAT_SYSROOT}/usr/lib/aarch64-linux-gnu")
else()
    set(CMAKE_FIND_ROOT_PATH /usr/aarch64-linux-gnu)
endif()
set(CMAKE_FIND_ROOT_PATH_MODE_PROGRAM NEVER)
set(CMAKE_FIND_ROOT_PATH_MODE_LIBRARY BOTH)
set(CMAKE_FIND_ROOT_PATH_MODE_INCLUDE BOTH)

find_program(QEMU_AARCH64 NAMES qemu-aarch64-static qemu-aarch64)
if(QEMU_AARCH64)
    set(CMAKE_CROSSCOMPILING_EMULATOR ${QEMU_AARCH64} -L ${qemu_libraries} ${qemu_environment})
endif()
